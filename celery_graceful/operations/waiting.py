"""Messages that were set aside for a worker that knows their task, read where they wait.

Workers look after them: they give them to who knows the task, and now and then back to their
queues. Where all of those have died, nobody does, until the next one starts, or ``rescue``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from celery_graceful.claims.lease import live_workers
from celery_graceful.messages.bounded_connections import bounded_connection
from celery_graceful.operations.asking import patience
from celery_graceful.operations.stores import Stores
from celery_graceful.store.store import Store
from celery_graceful.system.describe import shortened
from celery_graceful.unusable.giving_back import give_back_claims, give_back_copies
from celery_graceful.unusable.waiting import WaitingRoom

__all__ = ["Room", "Waiting", "give_back", "rooms_of", "say_waiting", "waiting_of"]

#: Names of tasks that are said.
NAMED = 3


class Room(NamedTuple):
    """Where something waits.

    Attributes:
        room: It.
        tasks: Of which tasks, and how many messages of each.
        is_seen: A worker of ours lives that looks after it.
    """

    room: WaitingRoom
    tasks: Counter[str]
    is_seen: bool


class Waiting(NamedTuple):
    """Tasks whose messages wait, each with how many.

    Attributes:
        seen: Of these a worker of ours looks after the messages.
        unseen: Of these none does.
    """

    seen: Counter[str]
    unseen: Counter[str]


def waiting_of(stores: Stores) -> Waiting:
    """What waits for a worker that knows its task.

    Args:
        stores: Where it may wait.

    Raises:
        StoreAway: A server does not answer.
    """
    found = Waiting(Counter(), Counter())
    for store in stores.workers:
        for _, tasks, is_seen in rooms_of(store, stores.brokers):
            (found.seen if is_seen else found.unseen).update(tasks)
    return found


def rooms_of(store: Store, brokers: Sequence[str]) -> Iterator[Room]:
    """Where something waits on a server.

    Args:
        store: It.
        brokers: As of ``Stores``.

    Raises:
        StoreAway: It does not answer.
    """
    for broker in brokers:
        room = WaitingRoom(store, broker)
        tasks: Counter[str] = Counter()
        for kind, count in room.kinds().items():
            tasks[kind.name] += count
        if tasks:
            yield Room(room, tasks, bool(live_workers(store, broker)))


def give_back(app: Any, room: WaitingRoom) -> int:
    """All that waits there goes back to its queues.

    Args:
        app: The Celery app.
        room: Where it waits.

    Returns:
        How many messages went back.

    Raises:
        StoreAway, BrokerAway: Some may have gone.
    """
    if not room.broker:
        return give_back_claims(room)
    broker = app.connection_for_read()
    with bounded_connection(broker, patience(broker)) as connection:
        return give_back_copies(room, connection)


def say_waiting(tasks: Mapping[str, int], *, is_seen: bool = True) -> str:
    """For people: how many messages wait, of which tasks, and whether nobody looks after them."""
    count = sum(tasks.values())
    waits, them = ("1 message waits", "it") if count == 1 else (f"{count} messages wait", "them")
    named = shortened(sorted(tasks), NAMED)
    nobody = "" if is_seen else f", and no worker looks after {them}"
    return f"{waits} for a worker that knows {named}{nobody}"
