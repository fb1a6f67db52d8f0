"""Near the end of a drain: where each task stands that will not make it.

For the log; and in few words for the history, and for who listens.
"""

from __future__ import annotations

import logging
import time

from celery_graceful.checkpoints.checkpoint import DELIVERY
from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.stage import Stage
from celery_graceful.pools import Adapter
from celery_graceful.runs.frames import point_in
from celery_graceful.settings import Settings
from celery_graceful.system.log_thread import LogThread
from celery_graceful.system.native import bounded, start_thread
from celery_graceful.timeline.board import Board

__all__ = ["LastStacks"]

#: Seconds before the hard deadline at which it is looked, at most; and the share of the time from
#: the soft one. Where there was no time, seconds at most that the hard deadline waits for it.
LEAD, SHARE, HURRY = 1.0, 0.25, 0.2

#: Tasks whose stacks are written.
MOST = 20


class LastStacks:
    """Of one worker; written once.

    Args:
        ledger: What it holds.
        board: When the hard deadline is.
        adapter: Of its pool, which knows where tasks stand.
        settings: Whether it is wanted.
        log: Holds up nobody.
    """

    def __init__(
        self, ledger: Ledger, board: Board, adapter: Adapter, settings: Settings, log: LogThread
    ) -> None:
        self.ledger, self.board, self.adapter, self.log = ledger, board, adapter, log
        self.done = not settings.dump_stacks
        self._points: dict[str, str] = {}

    @property
    def due_at(self) -> float:
        """When to write them, on the monotonic clock."""
        board = self.board
        return board.hard_at - min(LEAD, SHARE * (board.hard_at - board.soft_at))

    def write_soon(self) -> None:
        """In a thread of their own. Called by the watch."""
        self.done = True
        start_thread(lambda: self._write(self.board.hard_at), "graceful-stacks")

    def write_now(self, room: float) -> None:
        """The hard deadline has come before its time; ``room`` is what is left after it."""
        if not self.done:
            self.done = True
            seconds = min(HURRY, room / 10)
            until = time.monotonic() + seconds
            bounded(lambda: self._write(until), seconds)

    def point_of(self, request: HeldMessage) -> str:
        """Where one stood, in few words; empty if that was not looked for, or it did not say."""
        return self._points.get(request.request_dict[DELIVERY], "")

    def _write(self, until: float) -> None:
        active = [r for r in self.ledger.active() if r.stage is Stage.RUNNING and not r.lost]
        running = [r for r in active if r.successor is None]  # else it has ended by that
        for request in sorted(running, key=lambda r: -r.running_for)[:MOST]:
            if time.monotonic() >= until:
                return
            stack = self.adapter.stack_of(request, until)
            self._points[request.request_dict[DELIVERY]] = point_in(stack)
            self.log(
                logging.WARNING,
                "%s[%s] will be given up at the hard deadline. It stands at:\n%s",
                request.name,
                request.id,
                stack or "  (it does not say: it is inside of a call in C, or of another's code)",
            )
        if len(running) > MOST:
            self.log(logging.WARNING, "Where %d more stand is not said", len(running) - MOST)
