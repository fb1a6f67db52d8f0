"""Where an app has what operators ask for."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from celery_graceful.claims.lease import broker_digest
from celery_graceful.claims.lease_validity import server_info
from celery_graceful.store.app_stores import (
    broker_stores,
    find_store,
    find_workers_store,
)
from celery_graceful.store.rights import why_no_writes
from celery_graceful.store.store import Store, StoreAway, StoreIsReplica

__all__ = ["NoStore", "Stores", "broker_up", "stores_of", "writable"]


class NoStore(StoreAway):
    """There is no Redis: nothing is known of workers, but what they answer themselves."""


class Stores(NamedTuple):
    """The stores of one app.

    Attributes:
        workers: Where workers are known: servers of the broker if it is Redis, else the store.
        with_claims: Whether those are where messages are claimed, too.
        store: Of checkpoints and batches.
        brokers: By which broker a worker there may say that its messages are.
        away: Servers of a list of brokers that do not answer, while others do.
    """

    workers: tuple[Store, ...]
    with_claims: bool
    store: Store
    brokers: tuple[str, ...]
    away: tuple[str, ...] = ()


def stores_of(app: Any) -> Stores:
    """Where an app has its workers and what they keep.

    Raises:
        NoStore: Nowhere.
        SettingsError: A ``graceful_*`` setting cannot be used.
    """
    app.connection_for_read().transport  # noqa: B018 -- loads it: then its kind is known
    brokers = broker_stores(app)
    store, digest = find_store(app), broker_digest(app)
    workers = brokers or [s for s in (find_workers_store(app),) if s is not None]
    away: list[Store] = []
    if len(workers) > 1:
        with ThreadPoolExecutor() as pool:  # they may be away together
            answers = list(pool.map(_answers, workers))
        away = [one for one, answer in zip(workers, answers, strict=True) if not answer]
        answering = [one for one in workers if one not in away]
        if answering:  # else who asks hears what is wrong
            workers = answering
            store = answering[0] if store in away else store
    if store is None or not workers:
        raise NoStore(
            "there is no Redis to ask: neither the broker nor the result backend is one, and "
            "graceful_store is not set"
        )
    return Stores(
        tuple(workers),
        bool(brokers),
        store,
        ("", digest) if brokers else (digest,),
        tuple(one.address for one in away),
    )


def writable(stores: Stores) -> tuple[list[str], list[str]]:
    """Servers that are replicas in touch with their masters; and why others take no writes.

    Raises:
        StoreAway: One does not answer.
    """
    replicas, no_writes = [], []
    for store in stores.workers:
        why = why_no_writes(store)
        in_touch = isinstance(why, StoreIsReplica) and (
            server_info(store, "replication").get("master_link_status") != "down"
        )
        if in_touch:
            replicas.append(store.address)
        elif why is not None:
            no_writes.append(str(why))
    return replicas, no_writes


def broker_up(stores: Stores) -> float:
    """Seconds since the Redis that is the broker has started, of several the last.

    Raises:
        StoreAway: One does not answer.
    """
    servers = stores.workers if stores.with_claims else ()
    found = (server_info(store, "server").get("uptime_in_seconds") for store in servers)
    return min((float(up) for up in found if up is not None), default=math.inf)


def _answers(store: Store) -> bool:
    try:
        return bool(store.execute("PING", [], insist=True))
    except StoreAway:
        return False
