"""Errors of Redis or of a broker, and many names, in words: as all lines of the log have them."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["describe", "shortened"]

#: A password in a URL; what Redis says of a command that it does not know, HELLO with the
#: password among its arguments; and what urllib says of a port behind a password with a slash.
_SECRETS = (
    (re.compile(r"(://[^\s:/@]*):[^\s@]*@"), r"\1:**@"),
    (re.compile(r",? with args beginning with:.*", re.DOTALL), ""),
    (re.compile(r"(Port could not be cast to integer value) as .*", re.DOTALL), r"\1"),
)


def describe(exc: BaseException, address: str = "") -> str:
    """Type and message of an error, and where it happened, without any password.

    The ``repr`` of redis-py's errors has no message, and many messages name no host.

    Args:
        exc: What was raised.
        address: Host and port, if they are known.
    """
    message = " ".join(str(exc).split())
    for pattern, instead in _SECRETS:
        message = pattern.sub(instead, message)
    if getattr(exc, "is_described", False):
        return message
    text = f"{type(exc).__name__}: {message}" if message else type(exc).__name__
    return text if not address or address in text else f"{text} ({address})"


def shortened(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are.

    Args:
        names: All.
        most: How many are named.
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
