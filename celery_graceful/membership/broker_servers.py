"""Where the worker's consumer is connected, there the worker is a member, and there it claims.

An app may name several servers: the consumer is connected to the first that answers, and after a
lost connection perhaps to another one. What was claimed on one of them stays there, with its
lease, and is acknowledged or given back there, wherever the consumer is by then. The membership
there ends when nothing of it is left, or goes on when the consumer comes back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.cleanup import callbacks
from celery_graceful.membership.member import MOMENT, Member, WorkerView
from celery_graceful.messages.amqp import is_amqp
from celery_graceful.messages.brokers_without_acks import promise
from celery_graceful.store.app_stores import broker_store, find_store, find_workers_store
from celery_graceful.store.rights import Needs, lists_of, missing_rights
from celery_graceful.store.store import Store, StoreAway, StoreInCluster
from celery_graceful.system import native
from celery_graceful.timeline.board import PLACES

__all__ = ["Servers"]

logger = get_logger(__name__)


def is_allowed(store: Store, off: str, lists: Mapping[str, str] | None = None) -> bool:
    """Whether Redis lets us do all that we want. If not it is said, and we had better do nothing.

    Args:
        store: The Redis.
        off: What does not hold then.
        lists: Those that we want to claim from, as ``Needs`` has them.
    """
    try:
        lacking = " ".join(missing_rights(store, Needs(keys=lists or {})))
        if not lacking:
            store.check_slots()
    except StoreInCluster as exc:
        logger.error("%s: %s", off, exc)
        return False
    except StoreAway:
        return True  # it has refused nothing yet
    if lacking:
        logger.error(
            "%s: user %s of Redis at %s (%s) lacks %s. Mend: ACL SETUSER %s %s; then start the "
            "worker anew",
            off,
            store.user,
            store.address,
            store.source,
            lacking,
            store.user,
            lacking,
        )
    return not lacking


class Servers:
    """The servers on which one worker is a member, by their place in the list of brokers.

    Args:
        view: Of the worker.
    """

    def __init__(self, view: WorkerView) -> None:
        self.view = view
        self.members: dict[int, Member] = {}
        #: Where the consumer is connected, or was last.
        self.here: Member | None = None
        #: Without a hub the consumer arrives in one thread, and what is left is looked at in
        #: another.
        self._lock = native.Lock()

    def arrive(self, consumer: Any) -> None:
        """The consumer is connected, and about to fetch: from now on claims are made there."""
        ledger = self.view.ledger
        place = getattr(consumer.connection, "place", 0)
        self.view.board.be_at(place)
        ledger.requeue.connected(consumer.connection)
        channel = consumer.task_consumer.channel
        if not self._move_to(place):
            claims = getattr(channel, "may_claim", False)
            if not claims:
                self._say_why_not(consumer.connection, channel)
            new = self._make_member(place, consumer.task_consumer, claims=claims)
            self._move_to(place, new)
            if new is not None:
                new.start()
                ledger.post_mortems.tell_soon()
        here = self.here
        ledger.connected(None if here is None else here.claims)
        if here is not None:
            here.arrive()
            if here.claims is not None:
                channel.claim_for(here.claims)

    def _move_to(self, place: int, new: Member | None = None) -> bool:
        """The consumer is at ``place`` now. False: it is a member nowhere there."""
        with self._lock:
            if new is not None:
                self.members[place] = new
            left, self.here = self.here, self.members.get(place)
        if left is not None and left is not self.here:
            left.depart()
        return self.here is not None

    def _make_member(self, place: int, consumer: Any, *, claims: bool) -> Member | None:
        app = self.view.worker.app
        if place >= PLACES:
            logger.warning(
                "Reliable fetch is off on %s: only the first %d URLs of the broker may claim",
                app.connection_for_read().alt[place].rpartition("@")[2],
                PLACES,
            )
            return None
        store = broker_store(app, place) if claims else None
        known = store or find_workers_store(app)
        tasks = find_store(app)
        if tasks is not None and known is not None and tasks.source != known.source:
            is_allowed(tasks, "Checkpoints are not saved")
        if store is not None:
            off = "Reliable fetch is off, and kill -9 of this worker loses messages"
            lists = lists_of(consumer.channel, [queue.name for queue in consumer.queues])
            if not is_allowed(store, off, lists):
                return None
        if known is None or not (store or is_allowed(known, "Deaths of tasks are not counted")):
            return None
        return Member(self.view, known, place, claims=store is not None, losing=self.losing)

    def _say_why_not(self, connection: Any, channel: Any) -> None:
        if is_amqp(connection) or not self.view.settings.reliable_fetch:
            return  # the broker itself gives back; or nobody asked for it
        from celery_graceful.claims.claiming_transports import what_keeps_from_claiming

        transport = connection.transport
        cls = type(transport)
        logger.warning(
            "Reliable fetch is off for the transport %s.%s: %s. %s. Use redis://, or set "
            "graceful_reliable_fetch = False if that is meant",
            cls.__module__,
            cls.__qualname__,
            what_keeps_from_claiming(transport, channel),
            promise(channel),
        )

    def on_loop(self) -> None:
        """The loop goes round."""
        for place, member in list(self.members.items()):
            member.on_loop()
            with self._lock:
                gone = member is not self.here and member.is_done()
                if gone:
                    del self.members[place]
            if gone:
                member.retire()
                native.start_thread(member.leave, "graceful-leave")

    def settle(self) -> None:
        """Acknowledge what has ended, wherever it came from."""
        for member in list(self.members.values()):
            if member.claims is not None:
                member.claims.settle()

    @property
    def has_ends(self) -> bool:
        """Whether batches have still to hear of something that ended, with its acknowledgement."""
        members = list(self.members.values())
        return any(m.claims is not None and m.claims.has_ends for m in members)

    @property
    def claims_held(self) -> int | None:
        """How many messages it has claimed, wherever; ``None`` where it claims nothing."""
        held = [m.claims.held for m in list(self.members.values()) if m.claims is not None]
        return sum(map(len, held)) if held else None

    @property
    def lease_age(self) -> float | None:
        """Seconds since its lease was renewed last, where the consumer is connected."""
        here = self.here
        if here is None or not here.lease.held_until:
            return None
        renewed = here.lease.held_until - self.view.settings.lease_ttl
        return max(0.0, time.monotonic() - renewed)

    @property
    def loop_lag(self) -> float | None:
        """Seconds that the loop took to go round, or has taken so far."""
        return None if self.here is None else self.here.loop_lag

    @property
    def is_heard(self) -> bool:
        """Whether the broker has heard the worker within its lease; true where it cannot say."""
        here = self.here
        return here is None or here.claims is None or here.lease.held

    @property
    def is_cut_off(self) -> bool:
        """Whether the server that it is a member of does not answer: mostly the broker."""
        here = self.here
        return here is not None and (bool(here.lease.trouble) or not here.lease.held)

    def stops(self) -> None:
        """The worker was asked to stop: say so wherever it is a member. From any thread."""
        for member in list(self.members.values()):
            member.lease.stops()

    def losing(self) -> bool:
        """Whether the loop has not heard yet of an identity that was lost."""
        return any(member.lost for member in list(self.members.values()))

    def disconnect(self) -> None:
        """It has left, and the process goes on."""
        for member in list(self.members.values()):
            member.lease.store.disconnect()

    def leave(self) -> None:
        """The last thing that a worker does. A server that is away holds up no other."""
        calls = [member.leave for member in self.members.values()]
        if len(calls) == 1:
            calls[0]()
        elif calls:
            native.bounded_all(calls, max(MOMENT, callbacks.time_left()))
