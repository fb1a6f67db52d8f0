"""The phases of a worker, why tasks have to stop, and this process's view of both."""

from __future__ import annotations

import enum
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_graceful.board import Board

__all__ = [
    "Interrupt",
    "InterruptReason",
    "Phase",
    "attach",
    "board",
    "detach",
    "flag",
    "holds",
    "is_stopping",
    "worker_interrupt",
]


class Phase(enum.IntEnum):
    """Where a worker stands on its way to a stop."""

    RUNNING = 0
    QUIET = 1
    SOFT = 2
    HARD = 3
    EXIT = 4


class InterruptReason(str, enum.Enum):
    """Why a task has to stop."""

    SHUTDOWN = "shutdown"
    REVOKED = "revoked"
    RUN_TIME = "run_time"
    LEASE_LOST = "lease_lost"
    STORE_AWAY = "store_away"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Interrupt:
    """Why a task has to stop, and how much time it has.

    Attributes:
        reason: What asked for the stop.
        deadline: When the task is taken away, on the monotonic clock: the hard deadline.
    """

    reason: InterruptReason
    deadline: float

    @property
    def phase(self) -> Phase:
        """The phase that the worker is in now."""
        return Phase.RUNNING if board is None else board.phase

    def time_left(self) -> float:
        """Seconds until the hard deadline; never below zero."""
        return max(0.0, self.deadline - time.monotonic())

    def __str__(self) -> str:
        left = "" if math.isinf(self.deadline) else f", {self.time_left():.1f} s left"
        return f"{self.reason}{left}"


#: This process's board; ``None`` outside of a worker.
board: Board | None = None

#: Those of all workers of this process; more than one where several are embedded at once.
_boards: list[Board] = []

#: ``flag[0]`` is true when running tasks have to stop: all, those whose claims were lost, or some
#: that were revoked. Outside of a worker it never is.
flag: Any = b"\0"


def is_stopping() -> bool:
    """Whether this process is a worker's, and all of its running tasks have to stop."""
    return board is not None and board.interrupted


def worker_interrupt() -> Interrupt | None:
    """The interrupt of all that runs in this worker, if it is on."""
    if board is None or not board.interrupted:
        return None
    return Interrupt(board.reason, board.hard_at)


def holds(worker: str) -> bool | None:
    """Whether claims of that identity are held. ``None``: only the store knows."""
    answers = [each.holds(worker) for each in _boards]
    if True in answers:
        return True
    return None if None in answers or not answers else False


def attach(new: Board) -> None:
    """Make ``new`` the board of this process."""
    global board, flag
    _boards.append(new)
    board, flag = new, new.memory


def detach(old: Board | None = None) -> None:
    """Forget a board, or the latest: its worker has ended, and the process goes on."""
    global board, flag
    old = old or board
    if old is not None:
        old.close()
    if old in _boards:
        _boards.remove(old)
    board = _boards[-1] if _boards else None
    flag = b"\0" if board is None else board.memory
