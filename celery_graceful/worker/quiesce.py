"""The loop's part of a drain: what needs the broker connection of the worker."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from celery.bootsteps import CLOSE, TERMINATE
from celery.platforms import EX_OK
from celery.utils.log import get_logger
from celery.worker import state

from celery_graceful.batches.ends import Ends
from celery_graceful.batches.outbox import Outbox
from celery_graceful.deliveries.duplicates import Duplicates
from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.late_results import LateResults
from celery_graceful.deliveries.ledger import Ledger, strangers
from celery_graceful.deliveries.requeue import NotTaken
from celery_graceful.membership.broker_servers import Servers
from celery_graceful.phases import Phase
from celery_graceful.pools import Adapter
from celery_graceful.system.describe import describe
from celery_graceful.timeline.board import Board
from celery_graceful.unusable.detection import UnusableMessages
from celery_graceful.worker.giving_up import GivingUp
from celery_graceful.worker.loop import Loop
from celery_graceful.worker.other_consumers import OtherConsumers
from celery_graceful.worker.queues_that_end import tag_of_deleted
from celery_graceful.worker.report import listed
from celery_graceful.worker.revocation import Revocations

__all__ = ["Quiesce"]

logger = get_logger(__name__)

#: Seconds after which a fetch that was under way has ended (kombu asks for one second).
FETCH_PATIENCE = 1.2

#: Seconds between looks at it.
LOOK_AGAIN = 0.01

#: Seconds between looks at what handlers of others have not answered.
LOOK_AT_OTHERS = 0.05

#: Seconds that a stop waits for what batches have to hear of what has ended.
LAST_WORDS = 2.0

#: Seconds that Redis gets when the connection of the worker is gone.
LAST_FLUSH = 0.5


class Quiesce:
    """Stops fetching, gives back what was not started, and says when the worker is idle.

    Args:
        worker: Celery's ``WorkController``.
        board: Where the worker stands on its way to a stop.
        loop: Its loop.
        ledger: What it holds.
        duplicates: Second deliveries of what runs here.
        adapter: Of its pool.
        places: Where it claims.
        unusable: What it sets aside.
        others: What it consumes besides its tasks.
        revocations: Its running tasks that were revoked.
        giving_up: What becomes of its tasks at the hard deadline.
        late_results: Results that could not be stored yet.
        ends: What batches have still to hear of what has ended.
        outbox: Callbacks of batches that it publishes.
        request_stop: Begins the drain; takes what asks for it.
    """

    def __init__(
        self,
        worker: Any,
        board: Board,
        loop: Loop,
        ledger: Ledger,
        duplicates: Duplicates,
        adapter: Adapter,
        places: Servers,
        unusable: UnusableMessages,
        others: OtherConsumers,
        revocations: Revocations,
        giving_up: GivingUp,
        late_results: LateResults,
        ends: Ends,
        outbox: Outbox,
        request_stop: Callable[[str], None],
    ) -> None:
        self.worker = worker
        self.board = board
        self.loop = loop
        self.ledger = ledger
        self.duplicates = duplicates
        self.adapter = adapter
        self.places = places
        self.unusable = unusable
        self.others = others
        self.revocations = revocations
        self.giving_up = giving_up
        self.late_results = late_results
        self.ends = ends
        self.outbox = outbox
        self.request_stop = request_stop
        self.done = False
        #: Until when it waits for what batches have to hear.
        self._patient_until = 0.0
        self._idle_seen = False
        self._fetch_ends_by = float("inf")

    def on_change(self) -> None:
        """A delivery has ended, or one has come that is to go back. From any thread."""
        if self.board.is_quiet:
            self.loop.ring()

    def on_loop(self) -> None:
        """Somebody rang. In the loop."""
        if self.board.is_quiet:
            self.fetch_no_more()
        elif self.done:
            self.fetch_again()
        if self.ledger.requeue.deferred:
            self._after_the_fetch()
        if self.board.interrupted and not self.giving_up.has_begun:
            self._stop_when_idle()

    def fetch_no_more(self) -> None:
        """Stop fetching, once, and give back what was not started.

        What was on its way comes after the first call.
        """
        if self.done:
            self._release()
            return
        self.done = True
        self._fetch_ends_by = time.monotonic() + FETCH_PATIENCE
        self.loop.stop_fetching()
        self.others.stop_fetching()
        if self.loop.fetching():
            self.ledger.requeue.end_fetch(self.worker.consumer.task_consumer.channel)
        self._release()
        self.adapter.quiesce()

    def fetch_again(self) -> None:
        """The worker is not quiet any more: undo ``fetch_no_more``."""
        self.done = False
        self._fetch_ends_by = float("inf")
        self.ledger.requeue.defer_again()
        self.adapter.resume()
        self.others.fetch_again()
        self.loop.fetch_again()  # last: on a connection that is lost it raises

    def _release(self) -> None:
        if self.ledger.releasing:
            try:
                self.adapter.take_back()
            except Exception as exc:  # in the loop; those that are left run
                logger.error("Could not take back from the pool: %s", describe(exc), exc_info=True)
            self.ledger.release_unstarted()

    def _after_the_fetch(self) -> None:
        """Give back what waited for the fetch that was under way."""
        if self.loop.fetching() and time.monotonic() < self._fetch_ends_by:
            self.worker.timer.call_after(LOOK_AGAIN, self.loop.ring)
            return
        if self.board.is_quiet:
            self.ledger.requeue.defer_no_more()
        self._flush()

    def _flush(self, **options: Any) -> None:
        try:
            self.ledger.requeue.flush(**options)
        except Exception as exc:
            self.ledger.note_failure(exc)
            if not (isinstance(exc, NotTaken) and self.giving_up.has_begun):  # said there
                logger.error("Could not give back what was not started: %s", describe(exc))

    def _stop_when_idle(self) -> None:
        if self.ledger.held or self.ledger.leaving.out or self.ledger.requeue.deferred:
            self._idle_seen = False
        elif self.others.held or strangers(state.active_requests):
            self._idle_seen = False
            self.worker.timer.call_after(LOOK_AT_OTHERS, self.loop.ring)
        elif not self.unusable.finish() or self._batches_wait():
            self._idle_seen = False
            self.worker.timer.call_after(LOOK_AGAIN, self.loop.ring)
        elif not self._idle_seen:
            # Acknowledgements of the last task may wait in the loop: one more turn.
            self._idle_seen = True
            self.loop.ring()
        elif state.should_stop is None:
            self.board.enter(Phase.EXIT)
            state.should_stop = EX_OK

    def _batches_wait(self) -> bool:
        if not (self.ends.busy or self.places.has_ends or self.outbox.busy):
            return False
        now = time.monotonic()
        self._patient_until = self._patient_until or now + LAST_WORDS
        return now < self._patient_until

    def consumer_lost(self) -> None:
        """The consumer left its loop: the end, or a lost connection."""
        error = sys.exc_info()[1]
        ends = self.worker.blueprint.state in (CLOSE, TERMINATE)
        if ends and isinstance(error, Exception) and not self.board.interrupted:
            # Celery ends the worker by it, and would wait for its tasks without limit.
            self.request_stop(f"an error that Celery does not recover from, {error!r}")
        heard = self.loop.is_heard()
        self.loop.detach()
        self.unusable.detach()
        self.revocations.on_loop()
        if not self.ledger.requeue.is_amqp:  # else nobody can be answered any more
            self.late_results.on_loop()
        self.ends.wait_no_more()
        # Acknowledgements that wait for the loop: it may not go round again.
        self.places.settle()
        if self.ledger.claims is not None:
            pass  # acknowledged over a connection of its own
        elif self.board.interrupted or not self.ledger.requeue.is_amqp:
            self.loop.finish()
        # What no child was given went with ``flush``: what is left, one may have begun unheard.
        self.ledger.forget_unstarted(goes_on=self.ledger.requeue.is_amqp and not ends)
        self.ledger.keep_claims()
        if self.ledger.requeue.is_amqp:
            deleted = self.loop.queue_of(tag_of_deleted(error))
            self.duplicates.connection_lost(heard=heard)
            if deleted is not None:
                self._off_queue(deleted)
        self._flush(timeout=LAST_FLUSH, own_thread=True)
        if self.board.interrupted and state.should_stop is None:
            state.should_stop = EX_OK  # there is nothing to connect for

    def _off_queue(self, queue: str) -> None:
        """It was deleted: what runs and came from there has nothing at the broker any more."""
        orphans = [r for r in self.ledger.open_requests() if r.orphaned and self._is_of(r, queue)]
        for request in orphans:
            request.mark_answered()
        if orphans:
            logger.warning(
                "Queue %s was deleted, and with it the messages of what runs: %s. It runs on, and "
                "is sent to that queue again if a stop interrupts it",
                queue,
                listed(orphans),
            )

    def _is_of(self, request: HeldMessage, queue: str) -> bool:
        info = request.message.delivery_info or {}
        return self.loop.queue_of(info.get("consumer_tag")) == queue
