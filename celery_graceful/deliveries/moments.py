"""What becomes of deliveries, for the history: only where that is not as usual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_graceful.history.entry import What, entries_of
from celery_graceful.history.journal import record
from celery_graceful.store.app_stores import find_store, settings_of

__all__ = ["enter", "enter_tasks"]


def enter(requests: Sequence[Any], kind: What, reason: str, where: str = "") -> None:
    """Enter what has happened to them. Waits for nothing, in a worker's main process.

    Args:
        requests: Their deliveries.
        kind: What has happened.
        reason: Why.
        where: At which point they stood.
    """
    if requests:
        tasks = [(request.id, request.name) for request in requests]
        enter_tasks(requests[0].app, requests[0].hostname, tasks, kind, reason, where)


def enter_tasks(
    app: Any,
    worker: str,
    tasks: Sequence[tuple[str, str]],
    kind: What,
    reason: str,
    where: str = "",
) -> None:
    """The same of tasks of which there are no deliveries.

    Args:
        app: Theirs.
        worker: The name of the node.
        tasks: Ids and names, empty where they are not known.
        kind: What has happened.
        reason: Why.
        where: At which point they stood.
    """
    entries = entries_of(kind, tasks, worker=worker, reason=reason, where=where)
    record(find_store(app), settings_of(app), *entries)
