"""Which lists of a Redis are queues: kombu has one for each priority of a queue."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from celery_graceful.store.scan import keys
from celery_graceful.store.store import SEPARATOR, Store

__all__ = ["lists_of", "queue_lists", "queue_of"]

#: Kombu's default.
PRIORITIES = (0, 3, 6, 9)

#: Lists that are no queues of tasks.
_NO_QUEUES = re.compile(r"graceful:|_kombu\.|celery-task(set)?-meta-|.*\.pidbox$")


def lists_of(app: Any, queue: str) -> list[str]:
    """The lists of a queue, without the prefix; that which is taken from first is the first."""
    options = app.conf.broker_transport_options or {}
    separator = options.get("sep", SEPARATOR)
    steps = options.get("priority_steps", PRIORITIES)
    return list(dict.fromkeys([queue, *(f"{queue}{separator}{step}" for step in steps if step)]))


def queue_lists(store: Store) -> Iterator[str]:
    """All lists that may be a queue's, those of other apps too, each once.

    Raises:
        StoreAway: It does not answer.
    """
    return (key for key in keys(store, "*", "list") if not _NO_QUEUES.match(key))


def queue_of(store: Store, key: str) -> str:
    """The queue that a list belongs to, whose key comes without the prefix."""
    queue, separator, priority = key.rpartition(store.separator)
    return queue if separator and priority.isdecimal() else key
