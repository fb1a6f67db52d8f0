"""A worker among others: its lease, what it says of itself, and its share in rescues."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import celery
from celery.utils.log import get_logger

from celery_graceful.batches.ends import Ends
from celery_graceful.batches.holders import Holder
from celery_graceful.batches.ledger import OUTBOX
from celery_graceful.batches.outbox import Outbox
from celery_graceful.claims.claimant import WORKERS, Claimant, node_of
from celery_graceful.claims.failover import hang_up
from celery_graceful.claims.held_claims import Claims, Tag
from celery_graceful.claims.lease import Lease, broker_digest
from celery_graceful.claims.lease_validity import LeaseValidity
from celery_graceful.claims.rescue import Rescuer, Tell
from celery_graceful.cleanup import callbacks
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.membership import events
from celery_graceful.poison.deaths import judge, statement_of
from celery_graceful.poison.quarantine import UNTOLD
from celery_graceful.settings import Settings
from celery_graceful.store.store import Store, StoreAway
from celery_graceful.system.log_thread import log
from celery_graceful.system.process_identity import identity_of
from celery_graceful.system.version import VERSION
from celery_graceful.timeline.board import Board

__all__ = ["Member", "WorkerView"]

logger = get_logger(__name__)

#: Deliveries that a heartbeat names.
NAMED = 50

#: Seconds that the end of a worker waits for its last acknowledgements, and for its lease.
LAST_ACKS, LEAVE = 1.0, 1.0

#: Seconds that they get even when there is no time left.
MOMENT = 0.2


#: Seconds after which a worker looks again whether others have left something undone.
LOOK_EVERY = 5.0


@dataclass(frozen=True)
class WorkerView:
    """A worker, as far as its memberships know it.

    Attributes:
        worker: Celery's ``WorkController``.
        settings: What the user set.
        ledger: What it holds.
        board: What all of its processes know.
        ends: Tells batches that their members have ended.
        outbox: Publishes the callbacks of batches.
        ring_loop: Makes the loop go round.
        notify: Makes running tasks look at the board.
        on_room: Called where there may be room for another claim.
        has_enough: Whether that can wait, with room for so many, until there is more; told the
            seconds that the last one took, too.
        on_no_message: Told of a claim that is no message, and what was raised.
        unknown_tasks: How many messages wait here for tasks that are not known.
        tasks_keep_loop: A task that runs may keep the loop from going round.
        delivers_at_once: What the loop hands to the pool never waits for that.
        one_at_a_time: Its pool runs one task, whatever its concurrency.
    """

    worker: Any
    settings: Settings
    ledger: Ledger
    board: Board
    ends: Ends
    outbox: Outbox
    ring_loop: Callable[[], None]
    notify: Callable[[], None]
    on_room: Callable[[], None]
    has_enough: Callable[[int, float], bool]
    on_no_message: Callable[[Tag, Exception], None]
    unknown_tasks: Callable[[], int]
    tasks_keep_loop: bool
    delivers_at_once: bool
    one_at_a_time: bool


class Member:
    """The lease and the rescuer of one worker.

    Args:
        view: Of the worker.
        store: Where the workers are known.
        place: Of that server among those of the app.
        claims: Whether it claims there.
        losing: Whether the loop has not heard yet of an identity that was lost, anywhere.
    """

    def __init__(
        self,
        view: WorkerView,
        store: Store,
        place: int = 0,
        *,
        claims: bool,
        losing: Callable[[], bool],
    ) -> None:
        self.view = view
        self.ledger, self.board = view.ledger, view.board
        self.place = place
        self._losing = losing
        #: The consumer is connected there, or was last.
        self._is_here = False
        app, settings = view.worker.app, view.settings
        lease_validity = LeaseValidity(store, settings.lease_ttl, on_another=self._on_another)
        self.claims: Claims | None = None
        self.rescuer: Rescuer | None = None
        if claims:
            self.claims = Claims(
                store,
                on_no_message=view.on_no_message,
                on_room=view.on_room,
                has_enough=view.has_enough,
                goes_back=lambda: view.ledger.releasing,
                release=view.ledger.release_unstarted,
                on_refused=self._on_refused,
                write_ends=view.ends.write,
                ends_along=view.ends.along,
                delivers_at_once=view.delivers_at_once,
            )
            self.rescuer = Rescuer(
                self.claims,
                settings,
                partial(judge, app, store, tell=view.ledger.post_mortems.tell_soon),
                lease_validity,
                lambda: self.lease.identity.worker,
                self._look_for_others,
                self._telling_rescued,
            )
        self.lease = Lease(
            store,
            settings,
            view.worker.hostname,
            heartbeat=self._heartbeat,
            on_lost=self._on_lost,
            on_held=self._on_held,
            restoring=None if self.claims is None else self.claims.restoring,
            lease_validity=lease_validity,
            rescued=self.rescuer is not None,
        )
        self.lease.about.update(statement_of(app))
        self._holder = Holder(store, self._aboard, settings.lease_ttl)
        self._said_refused = self._retired = False
        self._look_at = 0.0
        #: The outbox of batches is here, and looked at along with something else.
        self._has_outbox = self.claims is not None and view.ends.with_claims
        self.lease.about["broker"] = "" if claims else broker_digest(app)
        #: Identities that were lost, and that the loop has not heard of yet.
        self.lost: list[str] = []
        self._began = self._phase_since = time.time()
        self._phase = self.board.phase
        self._process = identity_of(os.getpid())
        #: When the loop was asked to go round, and when it did.
        self._asked_at = self._turned_at = time.monotonic()

    def start(self) -> None:
        """Register, and look after the others."""
        if self.claims is not None:
            self.claims.claim_as(self.lease.identity)
        self.lease.start()
        if self.rescuer is not None:
            self.rescuer.start()

    def is_done(self) -> bool:
        """Whether nothing that was claimed here is on our hands any more."""
        return not self.lost and (self.claims is None or self.claims.is_done())

    def arrive(self) -> None:
        """The consumer is connected there, and about to fetch."""
        self._is_here = True
        self.ledger.post_mortems.known_as(self.lease.identity.worker)

    def depart(self) -> None:
        """It is connected elsewhere."""
        self._is_here = False

    def retire(self) -> None:
        """The consumer is elsewhere, and nothing is left here: the place is free for another."""
        self._retired = True
        self.board.forget_lease(self.place)

    def leave(self) -> None:
        """The last thing that a worker does."""
        left = max(MOMENT, callbacks.time_left() / 2)
        # Else it has claimed nothing; the answer that it holds its lease may be under way.
        if self.claims is not None and (self.lease.held_until or self.claims.left()):
            worker = self.lease.identity.worker
            all_is_back = self.claims.give_all_back(worker, min(LAST_ACKS, left))
            if not all_is_back:
                self._say_left(self.claims.left())
        # A thread that still talks while the interpreter ends can take gevent down.
        if self.rescuer is not None:
            self.rescuer.end(min(LEAVE, left))
        if self.claims is not None:
            self.claims.end(min(LEAVE, left))
            self.claims.claim_as(None)
        self.lease.leave(min(LEAVE, left))

    def _say_left(self, count: int) -> None:
        if count:
            if self._is_here:  # else that server went away before the worker was asked to stop
                self.ledger.note_failure()
            log(
                logger,
                logging.CRITICAL if self._is_here else logging.WARNING,
                "Up to %d messages are still claimed by %s, which ends: they are not lost, others "
                "give them back to their queues, within %g s once Redis answers",
                count,
                self.lease.identity.worker,
                self.view.settings.lease_ttl + self.view.settings.rescue_interval,
            )

    @property
    def loop_lag(self) -> float:
        """Seconds that the loop took to go round when it was asked to, or has taken so far."""
        asked, turned = self._asked_at, self._turned_at
        return (time.monotonic() if turned < asked else turned) - asked

    def _next_lag(self) -> float:
        """The same, and ask again."""
        lag = self.loop_lag
        if self._turned_at >= self._asked_at:
            self._asked_at = time.monotonic()
            self.view.ring_loop()
        return lag

    def _heartbeat(self) -> dict[str, Any]:
        worker, board = self.view.worker, self.board
        running = [r for r in self.ledger.active() if r.started_at is not None]
        named, phase = running[:NAMED], board.phase
        if phase is not self._phase:
            self._phase, self._phase_since = phase, time.time()
        return {
            "celery_graceful": VERSION,
            "celery": celery.__version__,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process": self._process,
            "at": time.time(),
            "every": self.view.settings.heartbeat_interval,
            "ttl": self.view.settings.lease_ttl,
            "since": self._began,
            "phase": phase.name,
            "phase_since": self._phase_since,
            "seconds_left": round(board.hard_at - time.monotonic(), 1)
            if board.interrupted
            else None,
            "pool": type(worker.pool).__module__.rpartition(".")[2],
            "concurrency": 1 if self.view.one_at_a_time else worker.concurrency,
            "tasks_keep_loop": self.view.tasks_keep_loop,
            "loop_lag": round(self._next_lag(), 3),
            "unknown_tasks": self.view.unknown_tasks(),
            "queues": sorted(worker.app.amqp.queues.consume_from)[:NAMED],
            "ear": "" if self.claims is None else self.claims.ear.digest,
            "running": [f"{r.name}[{r.id}]" for r in named],
            "running_for": [round(r.running_for, 1) for r in named],
            "running_count": len(running),
        }

    def _aboard(self) -> Iterator[str]:
        """What it holds of batches and no claim says: without claims, or acknowledged early."""
        for request in self.ledger.open_requests():
            unclaimed = request.claim is None or request.acknowledged
            part = request.part if unclaimed else None
            if part is not None:
                yield part.membership

    def _look_for_others(self) -> None:
        """What others have left undone: a failure to tell, since they do not know whom, and
        callbacks of batches to publish."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY
        keys = [UNTOLD, OUTBOX] if self._has_outbox else [UNTOLD]
        # Who looks for the dead asks nearly as often.
        if self.lease.store.any_exists(*keys, age=LOOK_EVERY + 1):
            self.ledger.post_mortems.tell_soon()
            if self._has_outbox:
                self.view.outbox.look(self.lease.store)

    @contextmanager
    def _telling_rescued(self) -> Iterator[Tell]:
        """Before they go back: what says that they run again comes later."""
        with events.soon(self.view.worker, "task") as tell:
            yield lambda dead, ids: tell(
                ("task-rescued", {"uuid": each, "rescued_from": node_of(dead)}) for each in ids
            )

    def _on_refused(self, seconds: float) -> None:
        """It fetches nothing for that long: at a start, or after a pause, that is over soon."""
        self.lease.doubt()
        if seconds < self.view.settings.lease_ttl:
            self._said_refused = False
        elif not self._said_refused:
            self._said_refused = True
            log(
                logger,
                logging.ERROR,
                "This worker fetches nothing: for %.0f s the broker has refused its claims, since "
                "it is not in %s there. %s",
                seconds,
                WORKERS,
                f"It cannot register: {self.lease.trouble}"
                if self.lease.trouble
                else f"It registers all the same, as {self.lease.identity.worker}: is what it "
                "writes to another server than what it fetches from, a replica or a proxy?",
            )

    def _on_held(self, until: float) -> None:
        # Well inside: who looks needs time to act on it.
        board = self.board
        until -= self.view.settings.lease_ttl / 3
        if not self._retired:
            board.hold_lease(until, self.lease.identity.worker, self.place)
        if board.has_lost and not self._losing() and not self.ledger.runs_lost:
            board.forget_lost()
        if not self._has_outbox:
            self.view.outbox.look_now_and_then()
        if self.claims is not None:
            self.claims.look_for_late_ones()
        try:
            self._holder.say(self.lease.identity.worker)
        except StoreAway:
            pass  # said there; the next heartbeat says it

    def _on_lost(self, old: Claimant) -> None:
        if self.claims is not None:
            self.claims.claim_as(self.lease.identity)
        if self._is_here:
            self.ledger.post_mortems.known_as(self.lease.identity.worker)
        if self._retired:
            return
        # Nothing is surely held under the new identity yet.
        self.board.hold_lease(time.monotonic(), self.lease.identity.worker, self.place)
        self.lost.append(old.worker)
        self.board.lose_lease()
        self.view.notify()
        self.view.ring_loop()

    def _on_another(self, peer: Any) -> None:
        """A failover: the loop may wait for an answer of the old master, which need not come."""
        consumer = getattr(self.view.worker, "consumer", None)
        if consumer is not None and self._is_here and self.claims is not None:
            dispatcher = getattr(consumer, "event_dispatcher", None)
            for connection in (consumer.connection, getattr(dispatcher, "connection", None)):
                if connection is not None and connection.connected:
                    hang_up(connection, peer)

    def on_loop(self) -> None:
        """The loop goes round: let go of what was lost."""
        if self._turned_at < self._asked_at:  # others ring as well
            self._turned_at = time.monotonic()
        while self.lost:
            self.ledger.lose(self.lost[0])
            del self.lost[0]
