"""What the processes of a pool count for their main process: numbers in memory that all share.

A process adds to the row of its id, so that what it has counted stays when it is gone. Two that
live at once and whose ids are 128 apart share a row, and lose one where both add in the same
microsecond.
"""

from __future__ import annotations

import enum
import os
import struct
from typing import Any

from celery_graceful.system import native
from celery_graceful.system.process import Slot, emptied

__all__ = ["REPORTERS", "STATUSES", "Tallies", "Tally"]

_NUMBER = struct.Struct("=Q")
_ROWS, _COLUMNS = 128, 32
_ROW = _COLUMNS * _NUMBER.size

#: Reporters of check-ins that are told apart, and what is reported.
REPORTERS, STATUSES = 9, ("in_progress", "ok", "error")


class Tally(enum.IntEnum):
    """What is counted: a column."""

    #: Whether anything is.
    ON = 0
    SAVES = 1
    SAVED_BYTES = 2
    RESUMES = 3
    #: The first of those of check-ins.
    CHECK_INS = 4


#: Threads of one process add in turn.
_lock: Slot[Any] = Slot("tallies' lock", native.Lock, in_fork=emptied)


class Tallies:
    """The numbers of one worker.

    Args:
        memory: Shared by its processes, and all zero at first.
        at: Where they begin in it; ``SIZE`` bytes are theirs.
    """

    SIZE = _ROWS * _ROW

    def __init__(self, memory: Any, at: int) -> None:
        self._memory, self._at = memory, at

    def begin(self) -> None:
        """Somebody wants to know: count from now on."""
        _NUMBER.pack_into(self._memory, self._at, 1)

    @property
    def on(self) -> bool:
        """Whether somebody wants to know."""
        return bool(self._memory[self._at])

    def add(self, column: int, number: int = 1) -> None:
        """Count. From any process, and any thread of it."""
        row = 1 + os.getpid() % (_ROWS - 1)  # the first one says whether anything is counted
        offset = self._at + row * _ROW + column * _NUMBER.size
        with _lock.value:
            (before,) = _NUMBER.unpack_from(self._memory, offset)
            self._memory[offset : offset + _NUMBER.size] = _NUMBER.pack(before + number)

    def add_check_in(self, reporter: int, status: str) -> None:
        """Count a check-in that a server has taken, by the place of its reporter among all."""
        if reporter < REPORTERS and status in STATUSES:
            place = reporter * len(STATUSES) + STATUSES.index(status)
            self.add(Tally.CHECK_INS + place)

    def total(self, column: int) -> int:
        """What all processes have counted."""
        start, end = self._at + _ROW + column * _NUMBER.size, self._at + self.SIZE
        memory = self._memory
        return sum(_NUMBER.unpack_from(memory, offset)[0] for offset in range(start, end, _ROW))

    def check_ins(self, reporter: int, status: str) -> int:
        """Those that a server has taken."""
        return self.total(Tally.CHECK_INS + reporter * len(STATUSES) + STATUSES.index(status))
