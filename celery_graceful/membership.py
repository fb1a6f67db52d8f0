"""A worker among others: its lease, what it says of itself, and its share in rescues."""

from __future__ import annotations

import logging
import os
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger

from celery_graceful import cleanup
from celery_graceful.claimant import WORKERS, Claimant
from celery_graceful.claims import Claims
from celery_graceful.hang_up import hang_up
from celery_graceful.lease import Lease
from celery_graceful.log_thread import log
from celery_graceful.poison import is_early, is_limited, judge
from celery_graceful.rescue import Rescuer
from celery_graceful.store import Store
from celery_graceful.trust import Trust

if TYPE_CHECKING:
    from celery_graceful.drain import Drain

__all__ = ["Membership"]

logger = get_logger(__name__)

#: Deliveries that a heartbeat names.
NAMED = 50

#: Seconds that the end of a worker waits for its last acknowledgements, and for its lease.
LAST_ACKS, LEAVE = 1.0, 1.0

#: Seconds that they get even when there is no time left.
MOMENT = 0.2


class Membership:
    """The lease and the rescuer of one worker.

    Args:
        drain: The worker's drain.
        store: Where the workers are known.
        claims: What it claims, on Redis.
        place: Of that server among those of the app.
    """

    def __init__(self, drain: Drain, store: Store, claims: Claims | None, place: int = 0) -> None:
        self.drain = drain
        self.claims = claims
        self.place = place
        app = drain.worker.app
        trust = Trust(store, drain.settings.lease_ttl, on_another=self._on_another)
        self.rescuer: Rescuer | None = None
        if claims is not None:
            self.rescuer = Rescuer(
                claims,
                drain.settings,
                partial(judge, app, store=store, tell=drain.ledger.inquest.tell_soon),
                partial(is_limited, app),
                partial(is_early, app),
                trust,
                lambda: self.lease.identity.worker,
            )
        self.lease = Lease(
            store,
            drain.settings,
            drain.worker.hostname,
            heartbeat=self._heartbeat,
            on_lost=self._on_lost,
            on_held=self._on_held,
            restoring=None if claims is None else claims.restoring,
            trust=trust,
            rescued=self.rescuer is not None,
        )
        if claims is not None:
            claims.on_refused = self._on_refused
        self._said_refused = self._retired = False
        self.lease.about["concurrency"] = drain.worker.concurrency
        #: Identities that were lost, and that the loop has not heard of yet.
        self.lost: list[str] = []
        self._began = time.time()
        #: When the loop was asked to go round, and when it did.
        self._asked_at = self._turned_at = time.monotonic()

    def start(self) -> None:
        """Register, and look after the others."""
        if self.claims is not None:
            self.claims.who = self.lease.identity
        self.lease.start()
        if self.rescuer is not None:
            self.rescuer.start()

    def is_done(self) -> bool:
        """Whether nothing that was claimed here is on our hands any more."""
        return not self.lost and (self.claims is None or self.claims.is_done())

    def retire(self) -> None:
        """The consumer is elsewhere, and nothing is left here: the place is free for another."""
        self._retired = True
        self.drain.board.forget_lease(self.place)

    def leave(self) -> None:
        """The last thing that a worker does."""
        left = max(MOMENT, cleanup.time_left() / 2)
        if self.claims is not None and self.lease.held_until:  # else it has claimed nothing
            self.claims.give_all_back(self.lease.identity.worker, min(LAST_ACKS, left))
        # A thread that still talks while the interpreter ends can take gevent down.
        if self.rescuer is not None:
            self.rescuer.end(min(LEAVE, left))
        if self.claims is not None:
            self.claims.end(min(LEAVE, left))
            self.claims.who = None
        self.lease.leave(min(LEAVE, left))

    def _loop_lag(self) -> float:
        """Seconds that the loop took to go round when it was asked to, or has taken so far."""
        asked, turned = self._asked_at, self._turned_at
        if turned < asked:
            return time.monotonic() - asked
        self._asked_at = time.monotonic()
        self.drain.loop.ring()
        return turned - asked

    def _heartbeat(self) -> dict[str, Any]:
        drain = self.drain
        self.lease.about["early"] = drain.ledger.running_early()
        running = [r for r in drain.ledger.active() if r.started_at is not None]
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "at": time.time(),
            "since": self._began,
            "phase": drain.board.phase.name,
            "seconds_left": round(drain.board.hard_at - time.monotonic(), 1)
            if drain.stopping
            else None,
            "pool": type(drain.worker.pool).__module__.rpartition(".")[2],
            "concurrency": drain.worker.concurrency,
            "loop_lag": round(self._loop_lag(), 3),
            "unknown_tasks": drain.misfits.waiting,
            "running": [f"{r.name}[{r.id}]" for r in running[:NAMED]],
        }

    def _on_refused(self, seconds: float) -> None:
        """It fetches nothing for that long: at a start, or after a pause, that is over soon."""
        self.lease.doubt()
        if seconds < self.drain.settings.lease_ttl:
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
        board = self.drain.board
        until -= self.drain.settings.lease_ttl / 3
        if not self._retired:
            board.hold_lease(until, self.lease.identity.worker, self.place)
        if board.has_lost and not self.drain.places.losing and not self.drain.ledger.runs_lost:
            board.forget_lost()

    def _on_lost(self, old: Claimant) -> None:
        if self.claims is not None:
            self.claims.who = self.lease.identity
        if self.drain.places.here is self:
            self.drain.ledger.inquest.known_as(self.lease.identity.worker)
        if self._retired:
            return
        # Nothing is surely held under the new identity yet.
        self.drain.board.hold_lease(time.monotonic(), self.lease.identity.worker, self.place)
        self.lost.append(old.worker)
        self.drain.board.lose_lease()
        self.drain.adapter.notify()
        self.drain.loop.ring()

    def _on_another(self, peer: Any) -> None:
        """A failover: the loop may wait for an answer of the old master, which need not come."""
        consumer = getattr(self.drain.worker, "consumer", None)
        if consumer is not None and self.drain.places.here is self and self.claims is not None:
            dispatcher = getattr(consumer, "event_dispatcher", None)
            for connection in (consumer.connection, getattr(dispatcher, "connection", None)):
                if connection is not None and connection.connected:
                    hang_up(connection, peer)

    def on_loop(self) -> None:
        """The loop goes round: let go of what was lost."""
        self._turned_at = time.monotonic()
        while self.lost:
            self.drain.ledger.lose(self.lost[0])
            del self.lost[0]
