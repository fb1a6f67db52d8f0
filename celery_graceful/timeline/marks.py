"""Marks: of which deliveries there is something in the store, in memory that processes share.

A mark is eight bytes that tell its delivery from others, in one of few places that follow from it.
It is taken away by the end of that one alone: by another one's, of the same id too, what is in the
store would stay there, and a task that is sent again under that id would go on behind its end.
Where all places are taken, each that shares them may have something there: needless looks.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import Any

from celery_graceful.system import native
from celery_graceful.system.process import Slot, emptied

__all__ = ["Marks"]

_MARK = struct.Struct("=LL")
_FREE = bytes(_MARK.size)
#: Marks that share their places; and how many such groups there are.
_EACH, _GROUPS = 8, 512
#: Behind them stands whether there was no room for one.
_FULL = _EACH * _MARK.size
_GROUP = _FULL + 1
_NONE = bytes(_GROUP)

#: Threads of one process write in turn.
_lock: Slot[Any] = Slot("marks' lock", native.Lock, in_fork=emptied)


class Marks:
    """The marks of one worker.

    Args:
        memory: Shared by its processes, and all zero at first.
        at: Where they begin in it; ``SIZE`` bytes are theirs.
    """

    SIZE = _GROUPS * _GROUP

    def __init__(self, memory: Any, at: int) -> None:
        self._memory, self._at = memory, at

    def set(self, delivery: str) -> None:
        """Note that a delivery, known by its token, has something in the store."""
        text = delivery.encode()
        start, mark = self._start(text), _mark(text)
        # There is no lock between processes: they begin to look at different places.
        first = os.getpid() % _EACH
        with _lock.value:
            found = self._marks(start)
            if mark in found:
                return
            for place in (*range(first, _EACH), *range(first)):
                if found[place] == _FREE:
                    self._write(start, place, mark)
                    return
            self._memory[start + _FULL] = 1

    def take(self, delivery: str) -> bool:
        """Whether a delivery may have something in the store; asking takes its mark away."""
        text = delivery.encode()
        start = self._start(text)
        if self._memory[start : start + _GROUP] == _NONE:  # nearly always
            return False
        with _lock.value:
            found, mark = self._marks(start), _mark(text)
            if mark in found:
                self._write(start, found.index(mark), _FREE)
                return True
            return bool(self._memory[start + _FULL])

    def _start(self, text: bytes) -> int:
        return self._at + zlib.crc32(text) % _GROUPS * _GROUP

    def _marks(self, start: int) -> list[bytes]:
        group = self._memory[start : start + _FULL]
        return [group[at : at + _MARK.size] for at in range(0, _FULL, _MARK.size)]

    def _write(self, start: int, place: int, mark: bytes) -> None:
        at = start + place * _MARK.size
        self._memory[at : at + _MARK.size] = mark


def _mark(text: bytes) -> bytes:
    return _MARK.pack(zlib.crc32(text), zlib.adler32(text))
