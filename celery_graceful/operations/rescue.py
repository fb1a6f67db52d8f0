"""What the dead held goes back to its queues now, where no worker sees to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from kombu.transport import virtual

from celery_graceful.claims.claimant import FALLEN, claims_key
from celery_graceful.claims.held_claims import Claims
from celery_graceful.claims.lease import dead_workers
from celery_graceful.claims.rescue import Rescuer
from celery_graceful.operations.records import Record
from celery_graceful.operations.stores import NoStore
from celery_graceful.poison.deaths import judge
from celery_graceful.store.app_stores import broker_stores, settings_of
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
    """

    server: str
    dead: dict[str, int]
    moved: int | None = None
    trusted_in: float = 0.0
    error: str = ""


def rescue(app: Any, *, dry_run: bool) -> list[Rescued]:
    """Give the claims of dead workers back, on each server of the broker.

    Args:
        app: The Celery app.
        dry_run: Only look.

    Returns:
        A record a server; none where the broker, such as RabbitMQ, does it by itself.

    Raises:
        NoStore: The broker is no Redis, and does not do it at once.
    """
    stores = broker_stores(app)
    if not stores:
        with app.connection_for_read() as connection:
            if not isinstance(connection.transport, virtual.Transport):
                return []
        raise NoStore(
            "the broker is not Redis: what a dead worker held is lost, or comes back after a "
            "time-out of the broker's own"
        )
    return [_rescue(app, store, dry_run) for store in stores]


def _rescue(app: Any, store: Store, dry_run: bool) -> Rescued:
    """On one server."""
    rescuer = Rescuer(Claims(store), settings_of(app), partial(judge, app, store=store))
    dead: dict[str, int] = {}
    moved, seconds = None, 0.0
    try:
        for worker in sorted({*dead_workers(store), *store.execute("SMEMBERS", [FALLEN])}):
            dead[worker] = int(store.execute("HLEN", [claims_key(worker)]))
        no_writes = why_no_writes(store) if dead else None
        if no_writes is not None:  # whoever lives could not say so
            return Rescued(store.address, dead, error=str(no_writes))
        if dead and not dry_run:
            seconds = rescuer.lease_validity.seconds()
            moved = rescuer.look()
    except StoreAway as exc:
        return Rescued(store.address, dead, moved, seconds, str(exc))
    return Rescued(store.address, dead, moved, seconds)
