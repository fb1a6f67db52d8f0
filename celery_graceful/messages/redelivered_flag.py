"""A message that goes back to its queue is marked: it was delivered before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kombu.utils.json import dumps, loads

__all__ = ["BEGUN", "has_begun", "mark_redelivered", "split"]

#: What the header ``redelivered`` says of a message that expires, and whose run has begun.
BEGUN = "begun"


def has_begun(headers: Mapping[str, Any]) -> bool:
    """Whether a run of a message has begun that expires: its expiry bounds the first start."""
    return headers.get("redelivered") == BEGUN


def split(entry: str, *, begun: bool = False) -> tuple[str, str]:
    """The list of a claim, and its message marked as redelivered."""
    name, _, text = entry.partition("\0")
    return name, mark_redelivered(text, begun=begun)


def mark_redelivered(text: str, *, begun: bool = False) -> str:
    """A message as it goes back; unchanged if it is none of kombu's.

    Args:
        text: The message.
        begun: A run of it has begun, and it would expire: from now on it does not.
    """
    try:
        message = loads(text)
        headers = message.setdefault("headers", {})
        headers["redelivered"] = BEGUN if begun or has_begun(headers) else True
        message["properties"].setdefault("delivery_info", {})["redelivered"] = True
    except Exception:  # what can be in a queue can raise anything
        return text
    return str(dumps(message))
