"""Where in which queue the message of a task waits, and who consumes that queue."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from celery_graceful.messages.bounded_connections import bounded_connection
from celery_graceful.operations.asking import BROKER_TIMEOUT
from celery_graceful.store.store import Store

__all__ = ["Place", "Unsure", "find_in_queues", "lengths"]

#: Bytes of messages that one command looks through, and keys that one looks at.
BYTES, KEYS_AT_ONCE = 1_000_000, 500

#: Seconds that a search may take.
PATIENCE = 10.0

#: Lists that are no queues.
_NO_QUEUES = re.compile(r"graceful:|_kombu\.|celery-task|.*\.pidbox$")


class Place(NamedTuple):
    """A message in a queue.

    Attributes:
        queue: Its name.
        task: That of the task.
        place: Of the message; 1 is the next that a consumer takes.
        total: How many wait there.
    """

    queue: str
    task: str
    place: int
    total: int


class Unsure(Exception):
    """There are more messages than could be looked through."""


def find_in_queues(app: Any, store: Store, task_id: str) -> Place | None:
    """Where on a Redis the message of a task waits.

    Args:
        app: The Celery app: its queues come first, then all other lists.
        store: The Redis.
        task_id: Of the task.

    Raises:
        StoreAway: It does not answer.
        Unsure: The search took too long.
    """
    options = app.conf.broker_transport_options or {}
    separator = options.get("sep", "\x06\x16")
    end = time.monotonic() + PATIENCE
    endings = ["", *(f"{separator}{step}" for step in options.get("priority_steps", (3, 6, 9)))]
    mine = [name for name in app.amqp.queues if name]
    others = (key.partition(separator)[0] for key in _lists(store))
    for queue in _once(mine, others):
        if time.monotonic() > end:
            raise Unsure(f"there are too many queues to look through: it came to {queue}")
        before, found, task = 0, None, ""
        for ending in dict.fromkeys(endings):
            place, total, name = _search(store, queue + ending, task_id, end)
            if place and found is None:
                found, task = before + place, name
            before += total
        if found is not None:
            return Place(queue, task, found, before)
    return None


def _search(store: Store, key: str, task_id: str, end: float) -> tuple[int, int, str]:
    """Where in a list, how long that is, and the name of the task."""
    looked = 0
    while True:
        place, more, total, name = store.run("place", [key], [task_id, looked, BYTES], insist=True)
        looked += int(more)
        if place or not more or looked >= int(total):
            return int(place), int(total), str(name)
        if time.monotonic() > end:
            raise Unsure(f"it is not among the first {looked} of {total} messages of {key}")


def _once(first: Iterable[str], then: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for names in (first, then):
        for name in names:
            if name not in seen:
                seen.add(name)
                yield name


def _lists(store: Store) -> Iterator[str]:
    """All lists that may be queues, those of other apps too."""
    pattern = re.sub(r"([\\\[\]*?^-])", r"\\\1", store.prefix) + "*"
    cursor = "0"
    while True:
        args = [cursor, "MATCH", pattern, "COUNT", KEYS_AT_ONCE, "TYPE", "list"]
        cursor, names = store.execute("SCAN", [], args, insist=True)
        for name in names:
            key = name[len(store.prefix) :]
            if not _NO_QUEUES.match(key):
                yield key
        if str(cursor) == "0":
            return


def lengths(app: Any) -> dict[str, tuple[int, int]]:
    """Of the queues of a broker that does not say what is in them: messages, and consumers.

    Raises:
        BrokerAway: The broker does not answer.
    """
    found: dict[str, tuple[int, int]] = {}
    with bounded_connection(app.connection_for_read(), BROKER_TIMEOUT) as connection:
        channel = connection.default_channel
        for queue in app.amqp.queues:
            try:
                declared = channel.queue_declare(queue, passive=True)
                found[queue] = int(declared.message_count), int(declared.consumer_count)
            except connection.channel_errors:  # there is none
                channel = connection.channel()
    return found
