"""The phases of a worker, and why tasks have to stop."""

from __future__ import annotations

import enum
import math
import time
from dataclasses import dataclass

__all__ = ["INTERRUPTED", "Interrupt", "InterruptReason", "Phase"]

#: State of an interrupted task in the result backend. It is not a ready state: whoever waits
#: for the result goes on waiting.
INTERRUPTED = "INTERRUPTED"


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
        """The phase that the worker is in now; ``RUNNING`` of one that was made by hand."""
        return Phase.RUNNING

    def time_left(self) -> float:
        """Seconds until the hard deadline; never below zero."""
        return max(0.0, self.deadline - time.monotonic())

    def __str__(self) -> str:
        left = "" if math.isinf(self.deadline) else f", {self.time_left():.1f} s left"
        return f"{self.reason}{left}"
