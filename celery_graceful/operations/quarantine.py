"""The quarantine, as operators see it: what is in it, sent again or dropped."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict, dataclass
from typing import Any

from celery_graceful.messages.bounded_connections import BrokerAway
from celery_graceful.operations.records import Done, Record, utc
from celery_graceful.operations.stores import NoStore
from celery_graceful.poison.owning_app import is_told_here
from celery_graceful.poison.quarantine import (
    BeingSent,
    Kept,
    delete,
    entries,
    find,
    send_again,
)
from celery_graceful.store.app_stores import broker_places, find_workers_store
from celery_graceful.store.store import Store, StoreAway
from celery_graceful.system.describe import describe

__all__ = ["Quarantine", "QuarantinedMessage", "QuarantinedTask"]

_GONE = "is not in quarantine"

#: Of what was there a moment ago.
_TAKEN = "was sent again, or deleted, by somebody else just now"


@dataclass(frozen=True)
class QuarantinedTask(Record):
    """A task that is not run again.

    Attributes:
        id: Of the task.
        task: Its name.
        why: One sentence.
        deaths: How often the process that ran it died.
        at: When it came here.
        worker: The worker that ran it last.
        message: As it is kept.
        app, results: Whose it is: the name of an app, and where its results are. Empty if that is
            not known.
        ours: Not of another app that shares the database.
    """

    id: str
    task: str
    why: str
    deaths: int
    at: dt.datetime
    worker: str
    message: dict[str, Any]
    app: str
    results: str
    ours: bool


@dataclass(frozen=True)
class QuarantinedMessage(QuarantinedTask):
    """As ``QuarantinedTask``, with what its message says.

    Attributes:
        headers: Of the message; ``None`` if it is none.
        body: Arguments; why not, where it was not decoded. Pickle is not read unasked.
    """

    headers: dict[str, Any] | None
    body: Any


class Quarantine:
    """The quarantine of one app. All of it raises ``StoreAway``, and ``NoStore``.

    Args:
        app: The Celery app.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    def tasks(self) -> list[QuarantinedTask]:
        """What is in it, oldest first."""
        found = [self._task(kept) for kept in entries(self._store)]
        return sorted(found, key=lambda task: task.at)

    def task(self, task_id: str) -> QuarantinedMessage | None:
        """One of them, with its message; ``None`` if it is not there."""
        kept = find(self._store, task_id)
        if kept is None:
            return None
        headers, body = None, None
        try:
            message = kept.to_message()
            headers = message.headers
            body = message.decode()
        except Exception as exc:  # pickle is not read unasked, and it may be no message at all
            body = f"not decoded: {exc!r}"
        return QuarantinedMessage(**vars(self._task(kept)), headers=headers, body=body)

    def retry(self, task_id: str, *, listed: bool = False) -> Done:
        """Send it again, to the tail of its queue; its deaths are forgotten.

        Of some who do so at once one sends it, and all have done it.

        Args:
            task_id: Its id.
            listed: It was there a moment ago: that somebody else has dealt with it is no failure.

        Raises:
            BrokerAway: The broker does not answer. It is still there.
        """
        store = self._store
        kept = find(store, task_id)
        if kept is None:
            return _gone(task_id, listed)
        try:
            sent = send_again(self.app, store, kept)
        except (StoreAway, BrokerAway):
            raise
        except BeingSent as exc:
            return Done(task_id, False, str(exc))
        except Exception as exc:  # brokers have errors of many kinds
            return Done(task_id, False, f"could not be sent: {describe(exc)}")
        return Done(task_id, True, "sent again") if sent else _gone(task_id, listed=True)

    def delete(self, task_id: str, *, listed: bool = False) -> Done:
        """Drop it and its message, for good.

        Args:
            task_id: Its id.
            listed: As for ``retry``.
        """
        try:
            deleted = delete(self._store, task_id)
        except BeingSent as exc:
            return Done(task_id, False, str(exc))
        return Done(task_id, True, "deleted") if deleted else _gone(task_id, listed)

    def _task(self, kept: Kept) -> QuarantinedTask:
        ours = is_told_here(self.app, kept.task, vars(kept))
        return QuarantinedTask(**{**asdict(kept), "at": utc(kept.at)}, ours=ours)

    @property
    def _store(self) -> Store:
        store = find_workers_store(self.app)
        for place in broker_places(self.app)[1:]:  # where the worker is, if the first is away
            if store is not None and _answers(store):
                break
            store = find_workers_store(self.app, place)
        if store is None:
            raise NoStore(
                "there is no Redis to keep a quarantine in: neither the broker nor the result "
                "backend is one, and graceful_store is not set"
            )
        return store


def _gone(task_id: str, listed: bool) -> Done:
    return Done(task_id, listed, _TAKEN if listed else _GONE)


def _answers(store: Store) -> bool:
    try:
        return bool(store.execute("PING", []))
    except StoreAway:
        return False
