"""What a person reads about a drain."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.stage import Stage
from celery_graceful.system.log_thread import LogThread
from celery_graceful.timeline.board import Board

__all__ = ["Report", "listed", "report"]

#: More tasks than this are counted, not named.
NAMED = 10


def listed(requests: Sequence[HeldMessage]) -> str:
    """``name[id] for 3.1 s, ...``, the longest running first."""
    if not requests:
        return "nothing"
    by_age = sorted(requests, key=lambda r: -r.running_for)
    text = ", ".join(f"{r.name}[{r.id}] for {r.running_for:.1f} s" for r in by_age[:NAMED])
    return text if len(requests) <= NAMED else f"{text} and {len(requests) - NAMED} more"


class Report:
    """The final report of one worker.

    Args:
        ledger: What it held.
        board: When it was asked to stop.
        log: Where to.
        drained: Told how many seconds it took, and how many of the grace were left.
    """

    def __init__(
        self,
        ledger: Ledger,
        board: Board,
        log: LogThread,
        drained: Callable[[float, float], None] = lambda took, left: None,
    ) -> None:
        self.ledger = ledger
        self.board = board
        self.log = log
        self._drained = drained
        self._written = False

    def write(self) -> None:
        """Write it, once, if the worker was asked to stop."""
        if self.board.interrupted and not self._written:
            self._written = True
            self.log(logging.WARNING, report(self.ledger, self.board))
            now = time.monotonic()
            self._drained(now - self.board.requested_at, self.board.grace_ends_at - now)


def report(ledger: Ledger, board: Board) -> str:
    """One line: what became of all that the worker held when it was asked to stop."""
    now = time.monotonic()
    left = board.grace_ends_at - now
    if left > -0.05:  # as it is written
        grace = f"{max(left, 0.0):.1f} s of grace left"
    else:
        grace = f"{-left:.1f} s more than the grace"
    counts = ledger.counts
    return (
        f"Stopped: {counts[Stage.FINISHED]} finished, {counts[Stage.INTERRUPTED]} interrupted, "
        f"{counts[Stage.GIVEN_UP]} given up, {counts[Stage.RELEASED]} released; took "
        f"{now - board.requested_at:.1f} s, {grace}"
    )
