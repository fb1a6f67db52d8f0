"""What workers without claims hold, as far as it can be seen: kombu's ``unacked`` hash on Redis."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from celery_graceful.batches.marks import Mark, member_of
from celery_graceful.messages.decoding import loads
from celery_graceful.messages.fields import fields_of, message_from
from celery_graceful.operations.stores import Stores
from celery_graceful.store.connections import unconnected_channel
from celery_graceful.store.scan import hash_pages
from celery_graceful.store.store import Store, StoreRefused

__all__ = ["Taken", "count_taken", "count_unacked", "find_taken"]

#: Seconds that a search may take.
PATIENCE = 5.0


class Taken(NamedTuple):
    """A message that was taken without a claim, and is not acknowledged yet.

    Attributes:
        task: Name of its task.
        back_at: When it comes back if its worker is dead; seconds since the epoch.
        member: Of which batch, if it is that of one.
    """

    task: str
    back_at: float
    member: Mark | None = None


def count_taken(app: Any, stores: Stores) -> int:
    """How many messages were taken without a claim; 0 where that cannot be asked.

    Raises:
        StoreAway: Redis does not answer.
    """
    if not stores.with_claims:
        return 0
    return count_unacked(app.connection_for_read().transport, stores.workers)


def count_unacked(transport: Any, brokers: Iterable[Store]) -> int:
    """As ``count_taken``, of servers that are such a broker.

    Args:
        transport: The broker's.
        brokers: The servers.
    """
    with unconnected_channel(transport) as channel:
        key = channel.unacked_key
    try:
        return sum(int(each.execute("HLEN", [key], insist=True)) for each in brokers)
    except StoreRefused:
        return 0


def find_taken(app: Any, stores: Stores, task_id: str) -> Taken | None:
    """The message of a task, if it was taken without a claim. As ``count_taken``."""
    if not stores.with_claims:
        return None
    with unconnected_channel(app.connection_for_read().transport) as channel:
        key, index, seconds = (
            channel.unacked_key,
            channel.unacked_index_key,
            channel.visibility_timeout,
        )
    end = time.monotonic() + PATIENCE
    try:
        for store in stores.workers:
            for page in hash_pages(store, key):
                for tag, entry in page.items():
                    # Each is parsed: an id that JSON escapes is not in the text.
                    fields = _fields(entry)
                    if fields.get("id") == task_id:
                        since = store.execute("ZSCORE", [index], [tag], insist=True)
                        back_at = float(since or 0) + seconds
                        return Taken(str(fields.get("task", "")), back_at, member_of(fields))
                if time.monotonic() > end:
                    return None
    except StoreRefused:
        pass
    return None


def _fields(entry: str) -> dict[str, Any]:
    try:
        return fields_of(message_from(loads(entry)[0]))
    except Exception:  # what can be in a queue can raise anything
        return {}
