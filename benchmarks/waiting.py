"""Waits of the benchmarks: each has a limit, and says what is held when it is reached."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["Stuck", "held", "holdings", "wait_until"]

#: Claims, or entries of a list, that are shown of each key.
SHOWN = 3


class Stuck(RuntimeError):
    """What was waited for has not come; the message says what Redis holds."""


def wait_until(
    done: Callable[[], object], what: str, client: Any, *, seconds: float, pause: float = 0.005
) -> None:
    """Wait until something is so.

    Args:
        done: Whether it is.
        what: It is, for who reads why it was not.
        client: Of the server whose holdings are told then.
        seconds: The limit.
        pause: Seconds between two looks.

    Raises:
        Stuck: The limit was reached.
    """
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            raise Stuck(f"not within {seconds:g} s: {what}. Redis holds:\n{holdings(client)}")
        time.sleep(pause)


def held(client: Any) -> int:
    """Messages that workers hold."""
    claims: list[str] = client.keys("graceful:claims:*")
    return sum(int(client.hlen(key)) for key in ["unacked", *claims])


def holdings(client: Any) -> str:
    """What waits and what is held, by key, with a few of the messages; and which workers live."""
    lines = []
    for key in sorted(client.keys("*")):
        kind = client.type(key)
        if kind == "list" and not key.startswith("graceful:bell:"):
            some = client.lrange(key, -SHOWN, -1)
            lines.append(f"{key}: {client.llen(key)} wait, next {_short(some)}")
        elif kind == "hash" and (key == "unacked" or key.startswith("graceful:claims:")):
            some = client.hscan(key, count=SHOWN)[1].items()
            shown = [f"{number}: {text}" for number, text in list(some)[:SHOWN]]
            lines.append(f"{key}: {client.hlen(key)} held, {_short(shown)}")
        elif key.startswith("graceful:lease:"):
            lines.append(f"{key}: {_short([client.get(key)])}")
    return "\n".join(lines) or "nothing"


def _short(texts: list[Any]) -> str:
    return "; ".join(f"{text}"[:300] for text in texts)
