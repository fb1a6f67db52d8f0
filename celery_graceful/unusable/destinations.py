"""Where a worker puts messages that it cannot use: what that is depends on the broker.

* Redis, claims: beside them, in the same step in which they leave them.
* Other brokers, with a store: a copy goes to the store, then the message is acknowledged.
* RabbitMQ without a store: a copy goes to a queue of ours, then the message is acknowledged.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from celery.utils.log import get_logger
from kombu.utils.json import dumps

from celery_graceful.claims.claimant import claims_key, node_of
from celery_graceful.claims.held_claims import Claims, Tag
from celery_graceful.claims.lease import broker_digest, live_workers
from celery_graceful.claims.queue_lists import queue_of
from celery_graceful.history.entry import Entry, What
from celery_graceful.history.journal import record
from celery_graceful.messages.bounded_connections import bounded_connection
from celery_graceful.messages.brokers_without_acks import ends_here
from celery_graceful.messages.comebacks import SENT_AGAIN
from celery_graceful.messages.republish import Sender
from celery_graceful.messages.side_queues import send_aside, send_later, waited
from celery_graceful.poison.owning_app import origin_of
from celery_graceful.poison.quarantine import Kept, keep
from celery_graceful.settings import Settings
from celery_graceful.store.app_stores import find_workers_store, settings_of
from celery_graceful.store.store import Store
from celery_graceful.system.log_thread import log
from celery_graceful.unusable.giving_back import give_back_claims, give_back_copies, send_back
from celery_graceful.unusable.waiting import AT_ONCE, RETURNED, Kind, Stray, WaitingRoom

if TYPE_CHECKING:
    from celery_graceful.deliveries.ledger import Ledger

__all__ = ["Case", "Destination", "make_destination"]

logger = get_logger(__name__)

#: Seconds that a broker gets to take what is sent again.
SEND_TIMEOUT = 2.0

#: Letters of an id that can be typed: others get one of ours.
_LONGEST_ID = 200


@dataclass
class Case:
    """A message that this worker cannot use.

    Attributes:
        message: As kombu delivered it; ``None`` if it could not.
        tag: Of its claim.
        queue: Where it came from.
        name: Of its task, as it says.
        id: Of its task, as it says.
        why: What is wrong with it; ``""`` if its task is not known here.
        exc: What was raised.
        freed: It does not count as prefetched any more.
        kept: It is in quarantine.
        stuck: It can be put nowhere, and stays where it is.
        delivery: Tells it from all others, also in other processes.
        at: When it was delivered, seconds since the epoch. What is kept of it is the same when it
            is kept again for want of an answer.
    """

    message: Any
    tag: Tag | None
    queue: str
    name: Any = ""
    id: Any = ""
    why: str = ""
    exc: Exception | None = None
    freed: bool = False
    kept: bool = False
    stuck: bool = False
    delivery: str = field(default_factory=lambda: str(uuid.uuid4()))
    at: float = field(default_factory=time.time)

    def put_away(self) -> None:
        """It is in quarantine."""
        self.kept = True

    def leave_there(self) -> None:
        """It can be put nowhere, and stays where it is."""
        self.stuck = True

    def free(self) -> None:
        """It takes no room from what this worker can use: it is a claim all the same."""
        if self.message is not None and not self.freed:
            self.freed = True
            self.message.channel.qos._quick_ack(self.tag)

    @property
    def redelivered(self) -> bool:
        return bool((self.message.delivery_info or {}).get("redelivered"))

    def label(self) -> dict[str, str]:
        """Id and task for quarantine."""
        task_id = self.id
        if not isinstance(task_id, str) or not 0 < len(task_id) <= _LONGEST_ID:
            task_id = ""
        if not task_id.isascii() or not task_id.isprintable() or " " in task_id:
            task_id = ""
        name = self.name if isinstance(self.name, str) else ""
        return {
            "id": task_id or self.delivery,
            "task": name[:_LONGEST_ID].encode(errors="replace").decode() or "?",
        }


class Destination(Protocol):
    """Where they are put; called from one thread."""

    #: What becomes of what has waited too long, for the log.
    end: str
    #: Messages in one step.
    at_once: int
    #: Whether the failure of what has waited too long is told from there.
    tells: bool

    def wait(self, cases: Sequence[Case]) -> list[Case]:
        """Set messages aside whose task is not known; returns those that waited long enough."""

    def keep(self, case: Case, why: str, tell: bool) -> str | None:
        """Keep a message for people; where it is, ``None`` if somebody else has it."""

    def kinds(self, age: float) -> dict[Kind, int]:
        """What waits; nothing, where that was seen up to ``age`` seconds ago."""

    def take(self, kind: Kind, most: int) -> list[tuple[str, Tag]]:
        """Get what is known here: claims to deliver; or they come through their queue."""

    def back(self) -> None:
        """What is due goes back to its queue."""

    def leave(self, until: float) -> None:
        """The worker has given up its lease.

        The last one leaves nothing where only workers like it would find it, as far as that can
        be done ``until`` then, on the monotonic clock.
        """


class ClaimsDestination:
    """Beside the claims of a worker, in the Redis that is its broker.

    Args:
        app: The Celery app.
        ledger: Knows with which claims it claims now.
        patience: Seconds that a message may wait.
    """

    end = "goes to quarantine"
    at_once, tells = AT_ONCE, True

    def __init__(self, app: Any, ledger: Ledger, patience: float) -> None:
        self.app = app
        self.ledger = ledger
        self.patience = patience
        self._rooms: dict[int, WaitingRoom] = {}

    def _room(self, book: Claims | None) -> WaitingRoom:
        book = book or self.ledger.claims
        assert book is not None
        store = book.store
        return self._rooms.setdefault(id(store), WaitingRoom(store))

    def wait(self, cases: Sequence[Case]) -> list[Case]:
        over = []
        groups: dict[tuple[int, str], list[Case]] = {}
        for case in cases:
            key = (0, "") if case.tag is None else (id(case.tag.book), case.tag.worker)
            groups.setdefault(key, []).append(case)
        for (_, worker), group in groups.items():
            room = self._room(None if group[0].tag is None else group[0].tag.book)
            answers = room.wait(worker, self.patience, [self._stray(case) for case in group])
            over += [c for c, answer in zip(group, answers, strict=True) if answer == "over"]
        return over

    def _stray(self, case: Case) -> Stray:
        if case.tag is not None:
            return Stray(case.id, Kind("", case.name), str(case.tag.number))
        # kombu's own fetch: as a claim of it would be.
        channel, payload = case.message.channel, case.message.serializable()
        priority = channel._get_message_priority(payload, reverse=False)
        key = (channel.global_keyprefix or "") + channel._q_for_pri(case.queue, priority)
        return _stray(self.app, case, f"{key}\0{dumps(payload)}")

    def keep(self, case: Case, why: str, tell: bool) -> str | None:
        tag = case.tag
        if tag is None:  # fanout
            return _keep_copy(self.app, self._room(None).store, case, why, tell)
        store = tag.book.store
        claimed = store.execute("HGET", [claims_key(tag.worker)], [tag.number], insist=True)
        if claimed is None:
            return None
        key, _, raw = claimed.partition("\0")
        case.queue = queue_of(store, key[len(store.prefix) :])
        rest = {"why": _why(case, why), "deaths": 0, "worker": tag.worker}
        kept = Kept.of_raw(key, raw, **case.label(), **rest, **origin_of(self.app))
        kept_as = keep(store, kept, (tag.worker, str(tag.number)), tell=tell)
        _enter(self.app, store, kept, kept_as, why)
        return kept_as and f"in quarantine as {kept_as}"

    def kinds(self, age: float) -> dict[Kind, int]:
        return self._room(None).kinds(age)

    def take(self, kind: Kind, most: int) -> list[tuple[str, Tag]]:
        book = self.ledger.claims
        if book is None or most <= 0:
            return []
        return [(text, tag) for _, text, tag in self._room(book).take(book, kind, most)]

    def back(self) -> None:
        self._room(None).back()

    def leave(self, until: float) -> None:
        book = self.ledger.claims
        if book is None or live_workers(book.store):
            return
        give_back_claims(self._room(book), until)


class StoreDestination:
    """Copies in a store that is not the broker, or not used for claims.

    Args:
        app: The Celery app.
        ledger: Knows the broker that the worker is connected to.
        store: The Redis.
        patience: Seconds that a message may wait.
    """

    end = "goes to quarantine"
    at_once, tells = AT_ONCE, True

    def __init__(self, app: Any, ledger: Ledger, store: Store, patience: float) -> None:
        self.app = app
        self.ledger = ledger
        self.store = store
        self.patience = patience
        self.broker = broker_digest(app)
        self.room = WaitingRoom(store, self.broker)

    def wait(self, cases: Sequence[Case]) -> list[Case]:
        strays = [_stray(self.app, case) for case in cases]
        answers = self.room.wait("", self.patience, strays)
        return [case for case, answer in zip(cases, answers, strict=True) if answer == "over"]

    def keep(self, case: Case, why: str, tell: bool) -> str | None:
        return _keep_copy(self.app, self.store, case, why, tell)

    def kinds(self, age: float) -> dict[Kind, int]:
        return self.room.kinds(age)

    def take(self, kind: Kind, most: int) -> list[tuple[str, Tag]]:
        self._send(self.room.lend(kind, RETURNED))
        return []

    def back(self) -> None:
        self._send(self.room.lend(None, RETURNED))

    def _send(self, lent: list[tuple[str, Kept]]) -> None:
        if lent:
            with bounded_connection(self.ledger.requeue.broker, SEND_TIMEOUT) as connection:
                send_back(Sender(connection), self.room, lent)

    def leave(self, until: float) -> None:
        if not self.room.kinds() or live_workers(self.store, self.broker):
            return
        with bounded_connection(self.ledger.requeue.broker, SEND_TIMEOUT) as connection:
            if ends_here(connection.default_channel):
                return
            give_back_copies(self.room, connection, until)
        left = sum(self.room.kinds().values())
        if left:
            text = "The last worker has left, and %d messages wait in the store for the next one"
            log(logger, logging.WARNING, text, left)


class QueueDestination:
    """Queues of ours, on a RabbitMQ without a store.

    Args:
        ledger: Knows the broker that the worker is connected to.
        patience: Seconds that a message may wait.
    """

    end = "goes to the queue graceful.quarantine"
    at_once, tells = 50, False

    def __init__(self, ledger: Ledger, patience: float) -> None:
        self.ledger = ledger
        self.patience = patience

    def wait(self, cases: Sequence[Case]) -> list[Case]:
        over = [case for case in cases if waited(case.message) >= self.patience]
        with bounded_connection(self.ledger.requeue.broker, SEND_TIMEOUT) as conn:
            send_later(conn, [(case.message, case.queue) for case in cases if case not in over])
        return over

    def keep(self, case: Case, why: str, tell: bool) -> str | None:
        with bounded_connection(self.ledger.requeue.broker, SEND_TIMEOUT) as conn:
            send_aside(conn, case.message, case.queue, _why(case, why))
        return "in the queue graceful.quarantine"

    def kinds(self, age: float) -> dict[Kind, int]:
        return {}

    def take(self, kind: Kind, most: int) -> list[tuple[str, Tag]]:
        return []

    def back(self) -> None:
        """The broker gives them back."""

    def leave(self, until: float) -> None:
        """Nothing waits here."""


def make_destination(
    app: Any, ledger: Ledger, settings: Settings, *, allowed: bool
) -> Destination | None:
    """The destination of a worker; ``None`` where Celery's way is all there is.

    Args:
        app: The Celery app.
        ledger: The worker's.
        settings: What the user set.
        allowed: Whether Redis, if there is one, lets us do all that we want.
    """
    if ledger.claims is not None:
        return ClaimsDestination(app, ledger, settings.unknown_task_patience)
    store = find_workers_store(app) if allowed else None
    if store is not None:
        return StoreDestination(app, ledger, store, settings.unknown_task_patience)
    if ledger.requeue.is_amqp:
        return QueueDestination(ledger, settings.unknown_task_patience)
    return None


def _why(case: Case, why: str) -> str:
    """For people who look into quarantine: with what was raised, which may quote the message."""
    if case.exc is None:
        return why
    said = str(case.exc)[:300].encode("unicode_escape").decode()
    return f"{why}: {said}"


def _copy(app: Any, case: Case, why: str) -> Kept:
    rest = {"why": _why(case, why), "deaths": 0, "worker": ""}
    kept = Kept.of_message(case.message, **case.label(), **rest, **origin_of(app))
    kept.message["queue"] = case.queue
    if case.redelivered:  # the broker does not say so of a copy
        kept.message["headers"][SENT_AGAIN] = True
    return replace(kept, at=case.at)


def _stray(app: Any, case: Case, text: str = "") -> Stray:
    kept = _copy(app, case, "it waits for a worker that knows its task")
    return Stray(
        case.id,
        Kind(case.queue, case.name),
        text=text or kept.to_json(),
        fingerprint=kept.fingerprint,
        again=case.redelivered,
        delivery=case.delivery,
    )


def _keep_copy(app: Any, store: Store, case: Case, why: str, tell: bool) -> str | None:
    kept = _copy(app, case, why)
    kept_as = keep(store, kept, tell=tell, again=case.redelivered)
    _enter(app, store, kept, kept_as, why)
    return kept_as and f"in quarantine as {kept_as}"


def _enter(app: Any, store: Store, kept: Kept, kept_as: str | None, why: str) -> None:
    if kept_as is not None:
        entry = Entry(What.QUARANTINED, kept_as, kept.task, node_of(kept.worker), why)
        record(store, settings_of(app), entry)
