"""Batches that were cancelled, and members that were revoked: what a worker holds of them.

What has not begun is dropped where it begins, in whatever process; but an ETA may be far away, and
what runs has begun. A process that has looked a moment ago begins once more, in between: it is
found at a second look.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Collection
from time import monotonic
from typing import Any, NamedTuple

from celery.utils.log import get_logger
from celery.worker import state

from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.request import GracefulRequest
from celery_graceful.deliveries.stage import Stage

__all__ = ["Cancelling", "drop_revoked", "name_running"]

logger = get_logger(__name__)

#: Seconds until the second look: many times what a process remembers (``batches.running``).
AGAIN = 1.0


class _Ran(NamedTuple):
    """What ran when its batch was cancelled, and whether it is ended."""

    request: HeldMessage
    is_ended: bool


class Cancelling:
    """What one worker does about batches that were cancelled. In the loop.

    Args:
        worker: Celery's ``WorkController``.
        ledger: What the worker holds.
        ring_loop: Makes the loop call ``on_loop``.
    """

    def __init__(self, worker: Any, ledger: Ledger, ring_loop: Callable[[], None]) -> None:
        self.worker, self.ledger = worker, ledger
        self._ring_loop = ring_loop
        #: When to look again, at which batches, and what ran of them already.
        self._again: deque[tuple[float, Collection[str], list[_Ran]]] = deque()

    def cancel(self, batches: Collection[str]) -> int:
        """Revoke what runs of the members of some batches, and drop what waits.

        Args:
            batches: Their ids.

        Returns:
            How many members that were.
        """
        ran: list[_Ran] = []
        count = self._look(batches, ran, again=False)
        self._again.append((monotonic() + AGAIN, batches, ran))
        self.worker.timer.call_after(AGAIN, self._ring_loop)
        return count

    def on_loop(self) -> None:
        """Look a second time, when it is time for that."""
        while self._again and self._again[0][0] <= monotonic():
            _, batches, ran = self._again.popleft()
            self._look(batches, ran, again=True)

    def _look(self, batches: Collection[str], ran: list[_Ran], *, again: bool) -> int:
        count = 0
        for request in self.ledger.open_requests():
            part = request.part
            if part is None or part.is_callback or part.batch not in batches:
                continue
            count += 1
            if request.stage is not Stage.RUNNING:
                if isinstance(request, GracefulRequest):
                    request.drop_cancelled()
                continue
            known = next((one for one in ran if one.request is request), None)
            if again and known is None and request.running_for < AGAIN / 2:
                continue  # it begins just now, when all know of it, and leaves itself out
            if known is None:
                known = _Ran(request, self._revoke(request))
                ran.append(known)
            if again and not known.is_ended:  # one that had begun just then has left itself out
                logger.warning(
                    "%s goes on, though its batch was cancelled: its pool ends no plain task",
                    request.humaninfo(),
                )
        return count

    def _revoke(self, request: HeldMessage) -> bool:
        """Have it ended; whether it can be."""
        try:
            request.terminate(self.worker.consumer.pool, signal.SIGTERM)
        except NotImplementedError:
            return False
        return True


def name_running(ledger: Ledger) -> None:
    """All that runs here can be found by its id. In the loop.

    Celery takes away whoever has the id of what has ended; of a task that is tried again at once
    that is the next run, which has begun meanwhile.
    """
    for request in ledger.open_requests():
        if request in state.active_requests:
            state.requests.setdefault(request.id, request)


def drop_revoked(ledger: Ledger) -> None:
    """Tasks were revoked: end the members among them that wait. In the loop.

    Celery does so when their turn comes; their batch would wait for that. What has ended, and
    waits to be told, has ended otherwise.
    """
    for request in ledger.open_requests():
        waits = request.stage is Stage.RECEIVED and not request.tells_later
        if request.part is not None and waits:
            request.revoked()
