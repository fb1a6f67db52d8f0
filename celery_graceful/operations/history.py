"""What has happened to tasks, and since which deploy."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from celery_graceful.history.entry import CUT_OFF, Entry, What
from celery_graceful.history.journal import write
from celery_graceful.history.reading import latest, read
from celery_graceful.operations.records import Deploy, History, Moment, utc
from celery_graceful.operations.stores import Stores
from celery_graceful.settings import Settings
from celery_graceful.store.store import StoreRefused

__all__ = ["Late", "history_of", "mark", "of_late"]


class Late(NamedTuple):
    """What somebody should look at, of the last minutes.

    Attributes:
        deaths: How many processes died in their tasks.
        died_ago: How many seconds ago the last of them did.
        cut_off: Workers that were to stop, and did not get to give back what they held.
    """

    deaths: int = 0
    died_ago: float = 0.0
    cut_off: Sequence[str] = ()


def history_of(stores: Stores, task_id: str | None = None) -> History:
    """That of one task, or of the fleet.

    Raises:
        StoreAway: Redis does not answer.
    """
    # What has to do with claims is entered beside them.
    entries = read(dict.fromkeys((stores.store, *stores.workers)), task_id)
    return History(task_id or "", tuple(map(_moment, entries)), tuple(_deploys(entries)))


def of_late(stores: Stores, seconds: float) -> Late:
    """What has died, and who was cut off; nothing where the history must not be read.

    Of a thousand moments, the newest: what happens to many tasks at once does not hold up who asks.
    A worker that was frozen has not died if it has gone on since, and ended what it ran.

    Raises:
        StoreAway: Redis does not answer.
    """
    try:
        entries = latest(dict.fromkeys((stores.store, *stores.workers)), seconds)
    except StoreRefused:
        return Late()
    fenced = {(e.id, e.worker): e.at for e in reversed(entries) if e.kind is What.FENCED}
    died = [e for e in entries if e.kind is What.DIED]
    died = [e for e in died if e.at >= fenced.get((e.id, e.worker), 0.0)]
    deaths = len({entry.process or (entry.id, entry.at) for entry in died})
    died_ago = max(0.0, time.time() - max((entry.at for entry in died), default=0.0))
    cut_off = {e.worker for e in entries if e.kind is What.RESCUED and e.reason.endswith(CUT_OFF)}
    return Late(deaths, died_ago, sorted(cut_off))


def mark(stores: Stores, settings: Settings, text: str) -> Moment:
    """Enter a deploy into the history of the fleet.

    Raises:
        StoreAway: Redis does not answer.
    """
    entry = Entry(What.DEPLOY, reason=text)
    write(stores.store, settings, [entry], insist=True)
    return _moment(entry)


def _moment(entry: Entry) -> Moment:
    return Moment(
        utc(entry.at),
        str(entry.kind),
        entry.id,
        entry.task,
        entry.worker,
        entry.reason,
        entry.where,
        entry.count,
    )


def _deploys(entries: Sequence[Entry]) -> Iterator[Deploy]:
    marks = [at for at, entry in enumerate(entries) if entry.kind is What.DEPLOY]
    for at, end in zip(marks, [*marks, len(entries)][1:], strict=True):
        counts: Counter[What] = Counter()
        for entry in entries[at + 1 : end]:
            counts[entry.kind] += entry.count
        said = {str(kind): counts[kind] for kind in What if counts[kind]}
        yield Deploy(utc(entries[at].at), entries[at].reason, said)
