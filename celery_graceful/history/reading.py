"""The history, read by operators."""

from __future__ import annotations

import time
from collections.abc import Iterable

from celery_graceful.history.entry import FLEET, Entry, key_of
from celery_graceful.store.scan import pairs_of
from celery_graceful.store.store import Store

__all__ = ["latest", "read"]

#: Moments that are looked at in the search for some of late.
LATEST = 1000


def read(stores: Iterable[Store], task_id: str | None = None) -> list[Entry]:
    """Entries, oldest first.

    Args:
        stores: Wherever some may be.
        task_id: Those of one task. Without: those of the fleet.

    Raises:
        StoreAway: A store does not answer.
    """
    # Two stores may be one server by two names.
    texts: dict[tuple[str, str], None] = {}
    for store in stores:
        if task_id is not None:
            for text in store.execute("LRANGE", [key_of(task_id)], [0, -1], insist=True):
                texts["", text] = None
            continue
        for name, said in store.execute("XRANGE", [FLEET], ["-", "+"], insist=True):
            texts[name, pairs_of(said)["m"]] = None
    found = (Entry.from_json(text) for _, text in texts)
    return sorted(filter(None, found), key=lambda entry: entry.at)


def latest(stores: Iterable[Store], seconds: float) -> list[Entry]:
    """Entries of the fleet of the last seconds, the newest first: of each store 1000 at most.

    Raises:
        StoreAway: A store does not answer.
    """
    first = max(0, int((time.time() - seconds) * 1000))
    texts: dict[tuple[str, str], None] = {}
    for store in stores:
        args = ["+", first, "COUNT", LATEST]
        for name, said in store.execute("XREVRANGE", [FLEET], args, insist=True):
            texts[name, pairs_of(said)["m"]] = None
    return list(filter(None, (Entry.from_json(text) for _, text in texts)))
