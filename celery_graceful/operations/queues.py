"""Where in which queue the message of a task waits, and who consumes that queue."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from celery_graceful.claims.queue_lists import lists_of, queue_lists, queue_of
from celery_graceful.messages.bounded_connections import bounded_connection
from celery_graceful.messages.routing import DELAYED
from celery_graceful.operations.asking import patience
from celery_graceful.operations.records import Worker
from celery_graceful.operations.stores import Stores
from celery_graceful.store.store import Store

__all__ = ["Place", "Unsure", "find_in_queues", "lengths", "unconsumed"]

#: Bytes of messages that one command looks through.
BYTES = 1_000_000

#: Seconds that a search may take.
PATIENCE = 10.0


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
    end = time.monotonic() + PATIENCE
    mine = [name for name in app.amqp.queues if name]
    others = (queue_of(store, key) for key in queue_lists(store))
    for queue in _once(mine, others):
        if time.monotonic() > end:
            raise Unsure(f"there are too many queues to look through: it came to {queue}")
        before, found, task = 0, None, ""
        for key in lists_of(app, queue):
            place, total, name = _search(store, key, task_id, end)
            if place and found is None:
                found, task = before + place, name
            before += total
        if found is not None:
            return Place(queue, task, found, before)
    return None


def unconsumed(app: Any, stores: Stores, workers: Sequence[Worker]) -> dict[str, int]:
    """Messages in queues of the app that none of these workers takes from; only of Redis.

    Raises:
        StoreAway: It does not answer.
    """
    if not stores.with_claims:
        return {}
    consumed = {queue for worker in workers if worker.fetches for queue in worker.queues}
    found: Counter[str] = Counter()
    # As configured: ``app.amqp.queues`` has those, too, that this process has ever sent to.
    for queue in app.amqp.Queues(app.conf.task_queues):
        for key in lists_of(app, queue) if queue not in consumed else ():
            for store in stores.workers:
                found[queue] += int(store.execute("LLEN", [key], insist=True))
    return {queue: count for queue, count in found.items() if count}


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


def lengths(app: Any, queues: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Of queues of a broker that does not say what is in them: messages, and consumers.

    Args:
        app: The Celery app.
        queues: Their names; those of native delayed delivery are looked at, too.

    Raises:
        BrokerAway: The broker does not answer.
    """
    found: dict[str, tuple[int, int]] = {}
    broker = app.connection_for_read()
    with bounded_connection(broker, patience(broker)) as connection:
        channel = connection.default_channel
        for queue in _once(queues, DELAYED):
            try:
                declared = channel.queue_declare(queue, passive=True)
                found[queue] = int(declared.message_count), int(declared.consumer_count)
            except connection.channel_errors:  # there is none
                if queue == DELAYED[0]:  # nor any other of them
                    break
                channel = connection.channel()
    return found
