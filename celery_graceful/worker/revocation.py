"""``revoke(terminate=True)`` of a graceful task: to the task what SIGTERM is to its worker.

It stops at the first place outside of a shield, with its ``finally`` blocks, and its process
lives on. In a pool of processes it has a hard deadline, as at a stop of the worker.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from logging import ERROR

from celery.utils.log import get_logger

from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.request import GracefulRequest
from celery_graceful.deliveries.stage import Stage
from celery_graceful.pools import Adapter
from celery_graceful.system.log_thread import log
from celery_graceful.task.base import GracefulTask
from celery_graceful.timeline.board import Board

__all__ = ["Revocations"]

logger = get_logger(__name__)

#: Seconds before the hard deadline of the worker at which a revoked task has to have ended, so
#: that it does not go back to the queue. Of short deadlines this share.
AHEAD, AHEAD_SHARE = 1.0, 0.25

#: Seconds between SIGTERM, which goes through a shield, and SIGKILL.
LAST_BLOCKS = 0.2


@dataclass
class _Revoked:
    request: GracefulRequest
    deadline: float
    asked: bool = False


class Revocations:
    """The running tasks of one worker that were revoked.

    Args:
        ledger: What the worker holds.
        adapter: Of its pool.
        board: Where tasks see it.
        patience: Seconds that a task may take for its end.
        ring_watch: Makes the watch ask ``next_at``.
    """

    def __init__(
        self,
        ledger: Ledger,
        adapter: Adapter,
        board: Board,
        patience: float,
        ring_watch: Callable[[], None],
    ) -> None:
        self.ledger = ledger
        self.adapter = adapter
        self.board = board
        self.patience = patience
        self.ring_watch = ring_watch
        self._pending: list[_Revoked] = []
        self._killed: list[GracefulRequest] = []

    def begin(self, request: GracefulRequest) -> bool:
        """Tell a running task to stop.

        Args:
            request: Its delivery.

        Returns:
            Whether it will hear of it; otherwise Celery's way is all there is.
        """
        if not isinstance(request.task, GracefulTask):
            return False
        board, adapter = self.board, self.adapter
        deadline = time.monotonic() + self.patience
        if not board.revoke(request.id, math.inf if adapter.in_process else deadline):
            return False
        request.mark_revoked()  # before it can hear of it, and end
        if request.stage is Stage.RUNNING:
            adapter.notify()
            self._pending.append(_Revoked(request, deadline))
            self.ring_watch()
        else:  # it has ended meanwhile
            board.forget_revoked(request.id)
        return True

    def next_at(self) -> float:
        """When ``check`` has something to do, on the monotonic clock."""
        return min(map(self._moment, self._pending), default=math.inf)

    def check(self) -> None:
        """End what has not ended in time. Called by the watch."""
        now = time.monotonic()
        for one in self._pending[:]:
            if one.request.stage is not Stage.RUNNING:  # its process may run another one
                self._pending.remove(one)
            elif now >= self._moment(one):
                self._end(one)

    def _moment(self, one: _Revoked) -> float:
        board = self.board
        if one.asked or not board.interrupted:
            return one.deadline
        return min(one.deadline, board.hard_at - min(AHEAD, AHEAD_SHARE * self.patience))

    def _end(self, one: _Revoked) -> None:
        request, adapter = one.request, self.adapter
        if not one.asked:
            what = "its pool cannot end it" if adapter.in_process else "its process is ended"
            log(logger, ERROR, "%s was revoked and still runs: %s", request.humaninfo(), what)
            adapter.end_process(request, signal.SIGTERM)
            one.asked, one.deadline = True, time.monotonic() + LAST_BLOCKS
        else:
            self._pending.remove(one)
            if not adapter.in_process:
                adapter.end_process(request, signal.SIGKILL)
                with self.ledger.leaving:  # which rings the loop
                    if self.ledger.finish(request):  # the pool may take its time to hear of it
                        self._killed.append(request)

    def on_loop(self) -> None:
        """Tell of those whose process was killed. The loop may not turn again."""
        while self._killed:
            request = self._killed.pop()
            request.ack_at_once()
            request.tell_revoked()
