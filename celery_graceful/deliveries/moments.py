"""What becomes of deliveries, for the history: only where that is not as usual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_graceful.history.entry import Entry, What
from celery_graceful.history.journal import record
from celery_graceful.store.app_stores import find_store, settings_of

__all__ = ["enter"]

#: Tasks that are named at once; the others are counted.
NAMED = 100


def enter(requests: Sequence[Any], kind: What, reason: str, where: str = "") -> None:
    """Enter what has happened to them. Waits for nothing, in a worker's main process.

    Args:
        requests: Their deliveries.
        kind: What has happened.
        reason: Why.
        where: At which point they stood.
    """
    if not requests:
        return
    app, worker = requests[0].app, requests[0].hostname
    entries = [Entry(kind, r.id, r.name, worker, reason, where) for r in requests[:NAMED]]
    more = len(requests) - NAMED
    if more > 0:
        entries.append(Entry(kind, worker=worker, reason=reason, count=more))
    record(find_store(app), settings_of(app), *entries)
