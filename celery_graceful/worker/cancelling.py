"""Batches that were cancelled, and members that were revoked: what a worker holds of them.

What has not begun is dropped where it begins, in whatever process; but an ETA may be far away, and
what runs has begun. A process that has looked a moment ago begins once more, in between: it is
found at a second look. Workers are told when a batch is cancelled: of what comes later, and waits
for its time, the ledger is asked.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Collection
from time import monotonic
from typing import Any, NamedTuple
from weakref import WeakSet

from celery.utils.log import get_logger
from celery.worker import state

from celery_graceful.batches.cancellations import is_cancelled, known_of
from celery_graceful.batches.member_part import Part
from celery_graceful.batches.running import FRESH
from celery_graceful.claims.sending import Sending
from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.request import GracefulRequest
from celery_graceful.deliveries.stage import Stage
from celery_graceful.store.app_stores import find_store
from celery_graceful.store.store import StoreForbidden
from celery_graceful.system import native
from celery_graceful.timeline.board import Board

__all__ = ["Cancelling", "drop_revoked", "name_running"]

logger = get_logger(__name__)

#: Seconds until the second look: many times what a process remembers (``batches.running``).
AGAIN = 1.0


class _Ran(NamedTuple):
    """What ran when its batch was cancelled, and whether it is ended."""

    request: HeldMessage
    is_ended: bool


class Cancelling:
    """What one worker does about batches that were cancelled. In the loop, but for what is asked.

    Args:
        worker: Celery's ``WorkController``.
        ledger: What the worker holds.
        board: What its processes see.
        ring_loop: Makes the loop call ``on_loop``.
    """

    def __init__(
        self, worker: Any, ledger: Ledger, board: Board, ring_loop: Callable[[], None]
    ) -> None:
        self.worker, self.ledger, self.board = worker, ledger, board
        self._ring_loop = ring_loop
        #: When to look again, at which batches, and what ran of them already.
        self._again: deque[tuple[float, Collection[str], list[_Ran]]] = deque()
        #: What ran, and was told: workers are told once more of batches that stand still.
        self._told: WeakSet[HeldMessage] = WeakSet()
        self._lock = native.Lock()
        self._sending = Sending(
            self._lock, self._ask, self._has_more, name="graceful-cancelled", what="ask for batches"
        )
        #: Batches of which it is still to be asked whether they were cancelled; and that were.
        self._unasked: set[str] = set()
        self._found: deque[str] = deque()

    def cancel(self, batches: Collection[str]) -> int:
        """Revoke what runs of the members of some batches, and drop what waits.

        Args:
            batches: Their ids.

        Returns:
            How many members that were.
        """
        self.board.count_cancellation()  # what begins in place of what is revoked asks anew
        ran: list[_Ran] = []
        count = self._look(batches, ran, again=False)
        self._again.append((monotonic() + AGAIN, batches, ran))
        self.worker.timer.call_after(AGAIN, self._ring_loop)
        return count

    def came(self, part: Part) -> None:
        """A part of a batch has come, and waits for its time. From any thread."""
        if part.is_callback or known_of(self.worker.app).age(part.batch) < FRESH:
            return
        with self._lock:
            self._unasked.add(part.batch)
            asleep = self._sending.awaken()
        if asleep:
            self._sending.wake()

    def end(self, seconds: float) -> None:
        """Ask no more; wait for the thread for up to ``seconds``."""
        self._sending.end(seconds)

    def on_loop(self) -> None:
        """Drop what was found, and look a second time, when it is time for that."""
        found = set()
        while self._found:
            found.add(self._found.popleft())
        if found:
            self.cancel(found)
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
                if request in self._told:
                    continue
                known = _Ran(request, self._revoke(request))
                ran.append(known)
                self._told.add(request)
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

    # -- in the thread -----------------------------------------------------------------

    def _has_more(self) -> bool:
        return bool(self._unasked)

    def _ask(self, at_once: bool) -> None:
        while self._unasked:
            with self._lock:
                batch = self._unasked.pop()
            try:
                self._ask_for(batch)
            except StoreForbidden:
                pass  # said there; waiting changes nothing
            except BaseException:
                with self._lock:
                    self._unasked.add(batch)
                raise

    def _ask_for(self, batch: str) -> None:
        store = find_store(self.worker.app)
        if store is not None and is_cancelled(self.worker.app, store, batch):
            self._found.append(batch)
            self._ring_loop()


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
        if request.is_part and waits:
            request.revoked()
