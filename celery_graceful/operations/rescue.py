"""What the dead held goes back to its queues now, where no worker sees to it.

And what was set aside for a worker that knows its task: the last worker that stops gives that back,
one that is killed does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kombu.transport import memory, virtual

from celery_graceful.claims.claimant import FALLEN, claims_key
from celery_graceful.claims.held_claims import Claims
from celery_graceful.claims.lease import broker_digest, dead_workers
from celery_graceful.claims.rescue import Rescuer
from celery_graceful.messages.bounded_connections import BrokerAway
from celery_graceful.operations.records import Record
from celery_graceful.operations.stores import NoStore
from celery_graceful.operations.waiting import give_back, rooms_of
from celery_graceful.poison.deaths import judge, tell_untold
from celery_graceful.store.app_stores import broker_stores, find_workers_store, settings_of
from celery_graceful.store.rights import why_no_writes
from celery_graceful.store.store import Store, StoreAway

__all__ = ["Rescued", "rescue"]


@dataclass(frozen=True)
class Rescued(Record):
    """What was done on one server.

    Attributes:
        server: Its address.
        dead: Ids of workers that were dead there, each with how many claims it held.
        moved: Claims that went back; ``None`` where nobody was to be rescued, or by somebody else.
        trusted_in: Seconds for which nobody can be taken for dead there.
        error: Why it does not answer; empty if it does.
        waiting: Tasks whose messages wait there for a worker that knows them, while none looks
            after them, each with how many.
        returned: How many of those went back; ``None`` where none were to.
    """

    server: str
    dead: dict[str, int]
    moved: int | None = None
    trusted_in: float = 0.0
    error: str = ""
    waiting: dict[str, int] = field(default_factory=dict)
    returned: int | None = None


def rescue(app: Any, *, dry_run: bool) -> list[Rescued]:
    """Give the claims of dead workers back, on each server of the broker; and what waits.

    Args:
        app: The Celery app.
        dry_run: Only look.

    Returns:
        A record a server. Where the broker, such as RabbitMQ, gives back by itself what dead
        workers held: one of the store, if something waits there that nobody looks after.

    Raises:
        NoStore: The broker is no Redis, and does not do it at once.
    """
    stores, digest = broker_stores(app), broker_digest(app)
    if stores:
        return [_rescue(app, store, ("", digest), dry_run, claims=True) for store in stores]
    transport = app.connection_for_read().transport
    store = find_workers_store(app)
    if store is not None and not isinstance(transport, memory.Transport):
        found = _rescue(app, store, (digest,), dry_run, claims=False)
        if found.waiting or found.error:
            return [found]
    if not isinstance(transport, virtual.Transport):
        return []
    raise NoStore(
        "the broker is not Redis: what a dead worker held is lost, or comes back after a "
        "time-out of the broker's own"
    )


def _rescue(
    app: Any, store: Store, brokers: Sequence[str], dry_run: bool, *, claims: bool
) -> Rescued:
    """On one server."""
    condemned: list[bool] = []
    judged = partial(judge, app, store, tell=lambda: condemned.append(True))
    rescuer = Rescuer(Claims(store), settings_of(app), judged)
    dead: dict[str, int] = {}
    waiting: Counter[str] = Counter()
    done: dict[str, Any] = {}
    try:
        if claims:
            for worker in sorted({*dead_workers(store), *store.execute("SMEMBERS", [FALLEN])}):
                dead[worker] = int(store.execute("HLEN", [claims_key(worker)]))
        rooms = [room for room in rooms_of(store, brokers) if not room.is_seen]
        for room in rooms:
            waiting.update(room.tasks)
        no_writes = why_no_writes(store) if dead or waiting else None
        if no_writes is not None:  # whoever lives could not say so
            done["error"] = str(no_writes)
        elif not dry_run:
            if dead:
                done["trusted_in"] = rescuer.lease_validity.seconds()
                done["moved"] = rescuer.look()
            for room in rooms:
                done["returned"] = done.get("returned", 0) + give_back(app, room.room)
            if condemned:  # not before the rest is back: result backends, too, take their time
                tell_untold(app)
    except (StoreAway, BrokerAway) as exc:
        done["error"] = str(exc)
    return Rescued(store.address, dead, **done, waiting=dict(waiting))
