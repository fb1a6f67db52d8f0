"""Successors: which runs have sent what goes on in their place, in memory that processes share.

Such a run has ended, whatever becomes of its process before it can say so: its message must not go
back. Each delivery has a number, and the note of it a place that follows from that. It stands there
until another one is written over it, and cannot be taken for that of another delivery: it is its
number, and a sum over its token. Of two whose numbers are a multiple of 4096 apart, and that have
both sent theirs and not ended, the first one's is lost: that runs again.
"""

from __future__ import annotations

import enum
import struct
import zlib
from typing import Any

__all__ = ["Sent", "Successors"]

_NOTE = struct.Struct("=Q")
_PLACES = 4096


class Sent(enum.IntEnum):
    """What goes on in the place of a run."""

    RETRY = 1
    REPLACEMENT = 2


class Successors:
    """The notes of one worker.

    Args:
        memory: Shared by its processes, and all zero at first.
        at: Where they begin in it; ``SIZE`` bytes are theirs.
    """

    SIZE = _PLACES * _NOTE.size

    def __init__(self, memory: Any, at: int) -> None:
        self._memory, self._at = memory, at

    def note(self, delivery: str, sent: Sent) -> None:
        """The broker has taken what goes on in the place of a delivery's run."""
        at = self._place(delivery)
        self._memory[at : at + _NOTE.size] = _note(delivery, sent)

    def find(self, delivery: str) -> Sent | None:
        """What goes on in the place of a delivery's run, as far as is known."""
        at = self._place(delivery)
        found = self._memory[at : at + _NOTE.size]
        return next((sent for sent in Sent if found == _note(delivery, sent)), None)

    def _place(self, delivery: str) -> int:
        return self._at + _number(delivery) % _PLACES * _NOTE.size


def _number(delivery: str) -> int:
    number = delivery.rpartition(":")[2]  # of no other form, but a message may say anything
    return int(number[-9:]) if number.isdecimal() else 0


def _note(delivery: str, sent: Sent) -> bytes:
    check = zlib.crc32(delivery.encode(errors="replace"))
    return _NOTE.pack(check << 32 | _number(delivery) << 2 | sent)
