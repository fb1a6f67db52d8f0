"""What was found missing of a batch, for who asks: the last look of a worker, or of a command.

Key: ``graceful:batch:<id>:missing``, a hash: member -> JSON of why, and whether that is sure. It
expires soon: what nobody looks for any more is not known to be missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from celery_graceful.batches.brief_status import still_open
from celery_graceful.batches.keys import INDEX, key_of
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.producers import FIELDS, heard_of, is_left
from celery_graceful.batches.search_state import callback_name
from celery_graceful.store.scan import hash_pages
from celery_graceful.store.store import Store

__all__ = ["InNeed", "LostBatch", "Missing", "Named", "how_many", "in_need", "note", "noted"]

#: Members in one command.
CHUNK = 500

#: Batches that are looked at for a number, of those that have stood still longest.
LONGEST = 1000


class Missing(NamedTuple):
    """A member that was found nowhere.

    Attributes:
        member: Its id; ``callback:<name>`` of a callback.
        why: What is known of it, for people.
        sure: It is in no queue and no worker holds it; else it may be somewhere all the same.
    """

    member: str
    why: str
    sure: bool = True

    @property
    def is_callback(self) -> bool:
        """Whether it is a callback of the batch."""
        return callback_name(self.member) is not None


class LostBatch(Missing):
    """A member that is a batch itself, which nobody knows any more: it cannot end."""

    def __new__(cls, member: str) -> LostBatch:
        """That member."""
        return super().__new__(cls, member, "the batch that it is has expired, or was lost")


class Named(Missing):
    """What somebody wants sent again who has named it, or since it has failed."""

    def __new__(cls, member: str, why: str = "", sure: bool = True) -> Named:
        """That member, or callback."""
        return super().__new__(cls, member, why, sure)


def note(ledger: BatchLedger, batch: str, found: Sequence[Missing], seconds: float) -> None:
    """Write down what was found, in the place of what was found before.

    Args:
        ledger: Of the batch.
        batch: Its id.
        found: All that is missing.
        seconds: For which it is known.

    Raises:
        StoreAway: Some of it may be written.
    """
    store, key = ledger.store, [key_of(batch, "missing")]
    store.execute("UNLINK", key, insist=True)
    for start in range(0, len(found), CHUNK):
        args = [
            text
            for member, why, sure in found[start : start + CHUNK]
            for text in (member, json.dumps([why, sure]))
        ]
        store.execute("HSET", key, args, insist=True)
        store.execute("PEXPIRE", key, [int(seconds * 1000)], insist=True)
    ledger.note_missing(batch, len(found))


def noted(ledger: BatchLedger, batch: str) -> Iterator[Missing]:
    """What was found missing by the last look, and has not ended since; in no order.

    Raises:
        StoreAway: The store does not answer.
    """
    for found in hash_pages(ledger.store, key_of(batch, "missing"), CHUNK):
        for member in still_open(ledger, batch, list(found)):
            yield Missing(member, *json.loads(found[member]))


def how_many(store: Store) -> tuple[int, int]:
    """Batches that have not ended; and members that they miss, by the last looks for them.

    Raises:
        StoreAway: The store does not answer.
    """
    batches = int(store.execute("ZCARD", [INDEX], quiet=True))
    stale = store.execute("ZRANGE", [INDEX], [0, LONGEST - 1], quiet=True) if batches else []
    keys = list(map(key_of, stale))
    missing = store.run("batch_fields", keys, ["missing"], quiet=True) if keys else []
    return batches, sum(int(count or 0) for (count,) in missing)


class InNeed(NamedTuple):
    """Batches that somebody has to do something about.

    Attributes:
        missing: Of which something is missing, by the last look.
        left: Of which nobody sends the rest.
    """

    missing: tuple[str, ...]
    left: tuple[str, ...]


def in_need(ledger: BatchLedger, batches: Sequence[str]) -> InNeed:
    """Of these batches, those.

    Raises:
        StoreAway: The store does not answer.
    """
    noted, left, now = [], [], ledger.now() if batches else 0.0
    for start in range(0, len(batches), CHUNK):
        chunk = batches[start : start + CHUNK]
        names, keys = ["missing", *FIELDS], list(map(key_of, chunk))
        for batch, found in zip(
            chunk, ledger.store.run("batch_fields", keys, names, insist=True), strict=True
        ):
            known = dict(zip(names, found, strict=True))
            noted += [batch] * bool(int(known["missing"] or 0))
            left += [batch] * is_left(
                known["state"], known["kind"], known["parent"], heard_of(known), now
            )
    # It may have ended since.
    missing = (status.id for status in ledger.statuses(noted) if status.missing)
    return InNeed(tuple(missing), tuple(left))
