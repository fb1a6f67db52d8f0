"""Claims: which messages workers hold, and what of them has begun. Read without any worker."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

from celery_graceful.claims.claimant import (
    FALLEN,
    WORKERS,
    begun_key,
    claims_key,
    lease_key,
    node_of,
)
from celery_graceful.claims.moves import read
from celery_graceful.claims.queue_lists import queue_of
from celery_graceful.messages.fields import fields_of, parse
from celery_graceful.operations.records import Claim
from celery_graceful.operations.stores import Stores
from celery_graceful.store.store import Store

__all__ = ["claims_of", "message_of"]


def claims_of(stores: Stores, worker: str | None = None) -> Iterator[Claim]:
    """Claims of workers, or of one.

    Args:
        stores: Where they are.
        worker: The name of its node, or its id.

    Raises:
        StoreAway: A server does not answer.
    """
    for store in stores.workers if stores.with_claims else ():
        known: set[str] = set()
        for key in (WORKERS, FALLEN):
            known |= set(store.execute("SMEMBERS", [key], insist=True))
        for each in sorted(known):
            if worker in (None, each, node_of(each)):
                yield from _of(store, each)


def _of(store: Store, worker: str) -> Iterator[Claim]:
    lives = bool(store.execute("EXISTS", [lease_key(worker)], insist=True))
    numbers = sorted(map(int, store.execute("HKEYS", [claims_key(worker)], insist=True)))
    begun = store.execute("SMEMBERS", [begun_key(worker)], insist=True)
    for found in read(store, worker, numbers, insist=True):
        for number, entry, *_ in found:
            if entry is None:  # acknowledged meanwhile
                continue
            key, _, text = entry.partition("\0")
            fields, redelivered = message_of(text)
            yield Claim(
                worker,
                lives,
                number,
                str(fields.get("id") or ""),
                str(fields.get("task") or ""),
                queue_of(store, key.removeprefix(store.prefix)),
                str(number) in begun,
                _time(fields.get("eta")),
                redelivered,
            )


def message_of(text: str) -> tuple[dict[str, Any], bool]:
    """What a message says of its task, and whether it was delivered before."""
    try:
        message = parse(text)
        info = message.delivery_info or {}
        return fields_of(message), bool(info.get("redelivered"))
    except Exception:  # what can be in a queue can raise anything
        return {}, False


def _time(text: Any) -> dt.datetime | None:
    try:
        found = dt.datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=dt.timezone.utc)
