"""The quarantine: messages of tasks that are not run again, to be looked at and sent again.

Their keys are in the legend of ``store/store.py``.
"""

from __future__ import annotations

import base64
import hashlib
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from kombu.message import Message
from kombu.utils.json import dumps, loads

from celery_graceful.claims.claimant import claims_key
from celery_graceful.history.entry import Entry, What
from celery_graceful.history.journal import record
from celery_graceful.messages.bounded_connections import bounded_connection
from celery_graceful.messages.comebacks import SENT_AGAIN
from celery_graceful.messages.fields import fields_of, parse
from celery_graceful.messages.redelivered_flag import BEGUN, mark_redelivered
from celery_graceful.messages.republish import OF_ONE_DELIVERY, Sender, without
from celery_graceful.store.app_stores import settings_of
from celery_graceful.store.scan import hash_pages
from celery_graceful.store.store import Store, StoreAway
from celery_graceful.system.known_fields import known_fields
from celery_graceful.system.portions import portions

__all__ = [
    "BeingSent",
    "Kept",
    "count",
    "delete",
    "entries",
    "find",
    "keep",
    "put",
    "release_key",
    "send_again",
]

QUARANTINE = "graceful:quarantine"
UNTOLD = "graceful:untold"

#: Seconds that a broker gets to take a message that is sent again.
SEND_TIMEOUT = 2.0

#: Seconds in which what was sent again is taken out of quarantine, or whoever does so is dead;
#: between two looks whether somebody else has done so; and for which it is waited for that.
RELEASE_TTL, PAUSE, PATIENCE = 30.0, 0.05, 2.0


class BeingSent(Exception):
    """Somebody else sends a task again, and has not said yet that it was done."""

    def __str__(self) -> str:
        return (
            "is being sent again by somebody else, or who did so has died: "
            f"ask again in {RELEASE_TTL:.0f} s"
        )


@dataclass(frozen=True)
class Kept:
    """What is kept of one task.

    Attributes:
        id: Of the task.
        task: Its name.
        why: One sentence for people.
        deaths: How often the process that ran it died.
        at: When it came here, seconds since the epoch.
        worker: The worker that ran it last.
        message: The message. In Redis: ``list``, the key that it came from, and ``raw``, the
            message as it was there. Else ``exchange``, ``routing_key``, ``headers``,
            ``properties``, ``content_type``, ``content_encoding`` and ``body`` in base 64.
        app, results: Whose it is; see ``owning_app.py``. Empty if that is not known.
    """

    id: str
    task: str
    why: str
    deaths: int
    at: float
    worker: str
    message: dict[str, Any]
    app: str = ""
    results: str = ""

    @classmethod
    def of_claim(cls, key: str, raw: str, **rest: Any) -> Kept:
        """Of a message as it was in the list ``key`` of Redis."""
        return cls.of_raw(key, raw, **_named(parse(raw)), **rest)

    @classmethod
    def of_raw(cls, key: str, raw: str, **rest: Any) -> Kept:
        """As ``of_claim``, of what need not be a message."""
        return cls(at=time.time(), message={"list": key, "raw": raw}, **rest)

    @classmethod
    def of_message(cls, message: Any, **rest: Any) -> Kept:
        """Of a message as kombu delivered it."""
        info = message.delivery_info or {}
        body = message.body
        kept = {
            "exchange": info.get("exchange") or "",
            "routing_key": info.get("routing_key"),
            # kombu has decompressed the body.
            "headers": {k: v for k, v in message.headers.items() if k != "compression"},
            "properties": dict(message.properties or {}),
            "content_type": message.content_type,
            "content_encoding": message.content_encoding,
            "body": base64.b64encode(body.encode() if isinstance(body, str) else body).decode(),
        }
        if "id" not in rest:
            rest.update(_named(message))
        return cls(at=time.time(), message=kept, **rest)

    def to_json(self) -> str:
        """As it is stored."""
        return str(dumps(asdict(self)))

    @classmethod
    def from_json(cls, text: str) -> Kept:
        """What was stored, maybe by a later version."""
        return cls(**known_fields(cls, loads(text)))

    @property
    def fingerprint(self) -> str:
        """Tells the message from others, and is the same when it is delivered again."""
        kept = self.message
        headers = without(kept.get("headers"), (*OF_ONE_DELIVERY, SENT_AGAIN))
        parts = [kept.get("raw"), headers, kept.get("body")]
        return hashlib.sha1(str(dumps(parts)).encode()).hexdigest()

    def to_message(self) -> Message:
        """The message, as kombu would deliver it."""
        kept = self.message
        if "raw" in kept:
            return parse(kept["raw"])
        return Message(
            body=base64.b64decode(kept["body"]),
            headers=kept["headers"],
            properties=kept["properties"],
            content_type=kept["content_type"],
            content_encoding=kept["content_encoding"],
            delivery_info={name: kept[name] for name in ("exchange", "routing_key")},
        )


def _named(message: Any) -> dict[str, Any]:
    headers = message.headers
    if "id" in headers:
        return {"id": headers["id"], "task": headers["task"]}
    payload = message.decode()  # task protocol 1
    return {"id": payload["id"], "task": payload["task"]}


def put(store: Store, *tasks: Kept, claims: Sequence[tuple[str, str]] = ()) -> list[bool]:
    """Put tasks into quarantine.

    Args:
        store: Where the workers are known.
        tasks: What is kept of them.
        claims: Of each, worker id and number of the claim that holds the message; given up in the
            same step. Without: no claims.

    Returns:
        Of each, whether it was done: not if the claim was gone.

    Raises:
        StoreAway: Some may have been done.
    """
    done: list[bool] = []
    claims = claims or [("", "")] * len(tasks)
    rows = [(one.id, one.to_json(), *claim) for one, claim in zip(tasks, claims, strict=True)]
    for portion in portions(rows, lambda row: len(row[1])):
        keys, args = [QUARANTINE, UNTOLD], []
        for task_id, text, worker, number in portion:
            keys += [f"graceful:deaths:{task_id}", f"graceful:started:{task_id}"]
            keys.append(claims_key(worker))
            args += [task_id, text, number]
        done += map(bool, store.run("quarantine", keys, args))
    return done


def keep(
    store: Store,
    kept: Kept,
    claim: tuple[str, str] | None = None,
    *,
    tell: bool = False,
    again: bool = False,
) -> str | None:
    """Keep a message that did not kill anybody; never in the place of another one.

    Args:
        store: Where the workers are known.
        kept: The message; it gets another id if there is one of its own in quarantine.
        claim: As for ``put``.
        tell: Its failure is to be told: see ``poison.tell_untold``.
        again: It was delivered before, so it may be there already.

    Returns:
        The id under which it can be found; ``None`` if the claim was gone.

    Raises:
        StoreAway: It may have been done or not.
    """
    task_id = kept.id
    while True:
        keys = [QUARANTINE, UNTOLD, f"graceful:waited:{task_id}"]
        args = [kept.id, kept.to_json(), "", "1" if tell else ""]
        if claim is not None:
            keys.append(claims_key(claim[0]))
            args[2] = claim[1]
        done = store.run("keep", keys, args, insist=True)
        if done == 1:
            return kept.id
        if done == 0:
            return None
        there = find(store, kept.id)
        if there == kept or (again and there and there.fingerprint == kept.fingerprint):
            return kept.id
        kept = replace(kept, id=str(uuid.uuid4()))


def entries(store: Store) -> Iterator[Kept]:
    """All that is in quarantine, in no order.

    Raises:
        StoreAway: The store does not answer.
    """
    for page in hash_pages(store, QUARANTINE):
        yield from map(Kept.from_json, page.values())


def count(store: Store) -> int:
    """How many are in quarantine.

    Raises:
        StoreAway: The store does not answer.
    """
    return int(store.execute("HLEN", [QUARANTINE], insist=True))


def find(store: Store, task_id: str) -> Kept | None:
    """One of them.

    Raises:
        StoreAway: The store does not answer.
    """
    text = _text_of(store, task_id)
    return None if text is None else Kept.from_json(text)


def _text_of(store: Store, task_id: str) -> Any:
    return store.execute("HGET", [QUARANTINE], [task_id], insist=True)


def send_again(app: Any, store: Store, kept: Kept) -> bool:
    """Send its message again, as it was, to the tail of the queue that it came from.

    On Redis in one step; with other brokers it is sent, and then taken out of quarantine. Of some
    who do so at once one sends it; the others wait for that for a moment.

    Returns:
        Whether it was still there, and was sent here.

    Raises:
        BeingSent: Somebody else does so, for longer than it takes.
        StoreAway: The store does not answer.
        Refused: No queue takes it; it is still in quarantine.
        Exception: What the broker's client raised; it is still in quarantine then.
    """
    send = _put_back if "raw" in kept.message else _publish
    sent = send(app, store, kept)
    if sent:
        again = Entry(What.RESENT, kept.id, kept.task, reason="from quarantine, by hand")
        record(store, settings_of(app), again)
    return sent


def _has_begun(kept: Kept) -> bool:
    """What has died has begun: its expiry is over."""
    return kept.deaths > 0 and bool(fields_of(kept.to_message()).get("expires"))


def _put_back(app: Any, store: Store, kept: Kept) -> bool:
    key = kept.message["list"]
    if store.prefix and key.startswith(store.prefix):  # the store adds it
        key = key[len(store.prefix) :]
    raw = kept.message["raw"]
    if _has_begun(kept):
        raw = mark_redelivered(raw, begun=True)
    return _release(store, kept.id, raw, key)


def _publish(app: Any, store: Store, kept: Kept) -> bool:
    # A worker may have it before it is taken out, and would take it for a copy of what is there.
    released, sender = release_key(kept.id), str(uuid.uuid4())
    end = time.monotonic() + PATIENCE
    while not store.execute(
        "SET", [released], [sender, "NX", "PX", int(RELEASE_TTL * 1000)], insist=True
    ):
        if find(store, kept.id) is None:
            return False
        if time.monotonic() > end:
            raise BeingSent
        time.sleep(PAUSE)
    try:
        text = _text_of(store, kept.id)  # somebody else may have been first
        if text is None:
            return False
        kept = Kept.from_json(text)
        with bounded_connection(app.connection_for_read(), SEND_TIMEOUT) as connection:
            more = {SENT_AGAIN: True, **({"redelivered": BEGUN} if _has_begun(kept) else {})}
            Sender(connection).send(kept.to_message(), more)
        with suppress(BeingSent):  # this one was slow: it is not alone any more
            delete(store, kept.id, sender, text)
        return True
    finally:
        with suppress(StoreAway):  # it expires
            store.run("released", [released], [sender], insist=True)


def release_key(task_id: str) -> str:
    """The key that is there while a task is sent again, and is still in quarantine."""
    return f"graceful:released:{task_id}"


def delete(store: Store, task_id: str, sender: str = "", text: str = "") -> bool:
    """Take it out of quarantine, for good.

    Args:
        store: Where the workers are known.
        task_id: Its id.
        sender: Who has sent it again.
        text: What that was: what has come in its place since stays.

    Returns:
        Whether it was there.

    Raises:
        BeingSent: Somebody else sends it again.
        StoreAway: The store does not answer.
    """
    return _release(store, task_id, sender=sender, text=text)


def _release(
    store: Store, task_id: str, raw: str = "", *lists: str, sender: str = "", text: str = ""
) -> bool:
    keys = [QUARANTINE, UNTOLD, release_key(task_id), *lists]
    done = store.run("release", keys, [task_id, raw, sender, text], insist=True)
    if done == 2:
        raise BeingSent
    return bool(done)
