"""Native groups and chords: entered into the ledger where Celery sends their tasks.

The id is that of the group. A chord's body is its ``on_complete``, and what it is given is counted
by the result backend, as ever (``chord_counter.py``). What a member is made of, such as a group in
a chain of the header, is no chord of its own: its tasks say that they belong to the member.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from itertools import chain, islice
from typing import Any
from uuid import uuid4

from celery.backends.base import Backend
from celery.canvas import group, maybe_signature
from celery.result import GroupResult
from celery.utils.log import get_logger
from kombu.exceptions import EncodeError

from celery_graceful.batches.adding import SAY_EVERY, new_sender
from celery_graceful.batches.chord_ledger import ChordLedger
from celery_graceful.batches.kept_headers import headers_here, keep
from celery_graceful.batches.ledger import CHUNK
from celery_graceful.batches.marks import (
    BATCH,
    CALLBACK,
    CHORD,
    LAST,
    Mark,
    callback_of,
    first_headers,
    first_of,
    mark,
    member_of,
    parts_of,
)
from celery_graceful.batches.model import ON_COMPLETE, Callback
from celery_graceful.batches.packing import pack
from celery_graceful.batches.whereabouts import broker_of
from celery_graceful.exceptions import BatchFinished, UnknownBatch
from celery_graceful.store.app_stores import find_store, settings_of
from celery_graceful.store.meanwhile import meanwhile
from celery_graceful.store.store import Store, StoreAway
from celery_graceful.system.log_thread import log
from celery_graceful.system.per_app import PerApp

__all__ = [
    "SEVERAL",
    "counts_itself",
    "counts_nothing",
    "last_id",
    "sent_for",
    "track",
    "unlock_later",
]

logger = get_logger(__name__)

#: Seconds that members may take to come which are registered together, before they are sent: a
#: header that is made by a generator begins to run before that has ended.
MOMENT = 0.05

#: Seconds that the ends of what was sent before under the same ids may take to be heard of, and
#: between two looks.
LAST_ENDS, LOOK_AGAIN = 2.0, 0.01

#: How the id of a member begins that ends in a group: no task has it, and it ends with the header.
SEVERAL = "several-"

#: How the id of a body begins that has none of its own.
BODY = "body-"

#: Polls that wait until it is known whether their chord is tracked, at most.
POLLS = 1000

#: What the tasks of a group have already, or is no option of theirs.
FROZEN = {
    "add_to_parent",
    "args",
    "chord",
    "connection",
    "group_id",
    "kwargs",
    "parent_id",
    "producer",
    "root_id",
    "task_id",
}

#: Where it is tracked, of apps that have said that they are.
_stores: PerApp[Store | None] = PerApp()

#: How the task is sent that asks again and again whether a header has ended, where the result
#: backend has no counter: by the id of the group.
_polls: dict[str, Callable[[], Any]] = {}

#: The chord for a member of which tasks are being sent.
_sent_for: ContextVar[str | None] = ContextVar("graceful_sent_for", default=None)


def track() -> None:
    """Look at each group that is sent from now on; doing so twice is the same as once."""
    plain = group._apply_tasks
    if hasattr(plain, "_tracks"):
        return

    @wraps(plain)
    def apply_tasks(
        self: Any, tasks: Any, producer: Any = None, app: Any = None, *args: Any, **options: Any
    ) -> Iterator[Any]:
        app = app or self.app
        store = _store_of(app) if _is_tracked(app) else None
        if store is None:
            return iter(plain(self, tasks, producer, app, *args, **options))
        return _apply(store, plain, self, iter(tasks), producer, app, args, options)

    apply_tasks._tracks = True  # type: ignore[attr-defined]
    group._apply_tasks = apply_tasks


def _is_tracked(app: Any) -> bool:
    """Whether the app wants it: one of ours, for another one may share its process."""
    return hasattr(app, "_plain_get_backend") and settings_of(app).track_chords


def _store_of(app: Any) -> Store | None:
    if app not in _stores:
        store = find_store(app) if app.conf.task_protocol != 1 else None
        if store is None:
            log(
                logger,
                logging.ERROR,
                "graceful_track_chords: chords are not tracked, for %s",
                "headers say what belongs to a chord, which task_protocol 1 has not"
                if app.conf.task_protocol == 1
                else "there is no Redis to do so in: give the URL of one as graceful_store",
            )
        _stores[app] = store
    return _stores[app]


def sent_for() -> str | None:
    """The chord for a member of which tasks are being sent here and now."""
    return _sent_for.get()


@contextmanager
def _sending_for(chord: str) -> Iterator[None]:
    token = _sent_for.set(chord)
    try:
        yield
    finally:
        _sent_for.reset(token)


def _apply(
    store: Store,
    plain: Any,
    of: Any,
    tasks: Iterator[Any],
    producer: Any,
    app: Any,
    args: Sequence[Any],
    options: dict[str, Any],
) -> Iterator[Any]:
    """Send the tasks of a group as Celery does, each registered before."""
    first = list(islice(tasks, 1))
    if not first:
        return
    headers = first_headers(first[0][0])
    inside = member_of(headers) or callback_of(headers)
    tasks = chain(first, tasks)
    group_id = first[0][2]
    poll = _polls.pop(group_id, _nothing)
    if inside is not None:
        poll()
        with _sending_for(inside.batch):
            yield from plain(of, tasks, producer, app, *args, **options)
        return
    # In Celery 5.6 a body that is a group has the id of its header, which would be forgotten.
    entry_id = f"{BODY}{group_id}" if headers.get(CHORD) == group_id else group_id
    given = dict(options)
    entry = _Entry(app, ChordLedger(store), entry_id, options)
    if not entry.create(first[0][0]):
        poll()
        yield from plain(of, tasks, producer, app, *args, **given)
        return
    is_there = type(of.tasks) in (list, tuple)  # what Celery makes of a generator is a list, too
    members = entry.members(tasks, is_there=is_there)
    with meanwhile(entry.say_sending, SAY_EVERY, "graceful-sending"):
        yield from plain(of, members, producer, app, *args, **options)
    entry.sent()
    if entry.lost is not None and not isinstance(entry.lost, BatchFinished):
        poll()


def unlock_later(app: Any, group_id: str, poll: Callable[[], Any]) -> bool:
    """Whether a chord may be tracked: then the ledger has its body sent, and nobody need poll.

    Args:
        app: The Celery app.
        group_id: Of the header, which is about to be sent.
        poll: Sends the task that polls, where it turns out not to be.
    """
    if not _is_tracked(app) or _store_of(app) is None:
        return False
    while len(_polls) >= POLLS:  # of headers that could not be sent
        _polls.pop(next(iter(_polls)), None)
    _polls[group_id] = poll
    return True


def _nothing() -> None:
    pass


class _Entry:
    """A group, or the header of a chord, on its way.

    Args:
        app: The Celery app.
        ledger: That hears of it.
        entry_id: Its id in the ledger: that of the group.
        options: What Celery sends each task with. Headers among them are taken over by the tasks,
            whose own they would replace.
    """

    def __init__(
        self, app: Any, ledger: ChordLedger, entry_id: str, options: dict[str, Any]
    ) -> None:
        self.app, self.ledger, self.id = app, ledger, entry_id
        self.sender = new_sender()
        self.headers = options.pop("headers", None) or {}
        self.options = options
        more = {name: options[name] for name in options.keys() - FROZEN}
        #: What each is called and sent with besides: arguments, and options.
        self.given = options.get("args") or (), options.get("kwargs") or {}, more
        self.body: Any = None
        #: Why not all of it is known to the ledger.
        self.lost: Exception | None = None
        self.results: list[Any] | None = None

    def members(self, tasks: Iterator[Any], *, is_there: bool) -> Iterator[Any]:
        """Their tasks, marked; each is registered before it is given away.

        Args:
            tasks: As Celery prepares them.
            is_there: All are there; else a generator makes them.
        """
        count, tasks = 0, self._with_headers(tasks)
        while chunk := _at_once(tasks, CHUNK if is_there else min(CHUNK, count or 1)):
            count += len(chunk)
            members = [one for sig, result, _ in chunk if (one := self._member(sig, result))]
            if self.lost is None:
                try:
                    self.ledger.add(self.id, members)
                except (StoreAway, BatchFinished, UnknownBatch) as exc:  # or somebody has ended it
                    self._lose(exc)
            yield from chunk

    def _with_headers(self, tasks: Iterator[Any]) -> Iterator[Any]:
        """As they come: what makes them may go from tenant to tenant."""
        for one in tasks:
            keep(one[0], headers_here(self.app))
            yield one

    def create(self, first: Any) -> bool:
        """Open it in the ledger, before any of its tasks. False: it is not tracked."""
        body = self.options.get("chord") or first.options.get("chord")
        callbacks = {}
        if body is not None:
            self.body = self._marked(body)
            self.results = None if counts_itself(self.app.backend) else []
            if self.options.get("chord"):
                self.options["chord"] = self.body
            try:
                packed = base64.b64encode(pack(self.app, self.body)).decode()
            except EncodeError as exc:
                self._lose(exc)
                return False
            last = last_id(self.body)
            callbacks[ON_COMPLETE] = Callback(last, {"packed": packed}, False, gathers=True)
        settings = settings_of(self.app)
        try:
            for _ in range(2):
                self.ledger.create(
                    self.id,
                    kind="chord",
                    callbacks=callbacks,
                    ttl=settings.batch_ttl,
                    linger=settings.batch_linger,
                    broker=broker_of(self.app),
                )
                try:
                    self.ledger.begin_sending(self.id, self.sender)
                except BatchFinished:  # one that is frozen can be sent again, under its id
                    if not self._is_over():
                        return False
                    self.ledger.drop(self.id)
                else:
                    break
        except StoreAway as exc:
            self._lose(exc)
        return True

    def say_sending(self) -> None:
        """It is being sent, still: who dies meanwhile leaves it as it is."""
        if self.lost is None:
            self.ledger.still_sends(self.id, self.sender)

    def _is_over(self) -> bool:
        """Whether it has ended that was sent before under the same ids; waits for that a little.

        Who waits for the result has it before the ledger has heard of the last ends. They would be
        taken for those of the tasks that are sent now, which would be left out.
        """
        end = time.monotonic() + LAST_ENDS
        while self.ledger.status(self.id).finished is None or not forget_over(self.app, self.id):
            if time.monotonic() > end:
                log(
                    logger,
                    logging.WARNING,
                    "Chord %s is sent again while the tasks that were sent before under the same "
                    "ids have not ended: it is not tracked this time",
                    self.id,
                )
                return False
            time.sleep(LOOK_AGAIN)
        return True

    def _marked(self, body: Any) -> Any:
        """Its first task is the callback. Where it begins with several, it ends when they are sent.

        What follows, also another chord, stands for itself.
        """
        sig = maybe_signature(body, app=self.app, clone=True)
        keep(sig, headers_here(self.app))
        first = first_of(sig)
        if parts_of(first) is None:
            mine = Mark(self.id, ON_COMPLETE)
            mark(first, {CALLBACK: str(mine), LAST: str(first.options.get("task_id"))})
        else:
            mark(first, {CHORD: self.id})
        return sig

    def _member(self, sig: Any, result: Any) -> tuple[str, bytes] | None:
        if self.body is not None:
            sig.options["chord"] = self.body
        if self.results is not None:
            self.results.append(result.as_tuple())
        several = isinstance(result, GroupResult)
        member = f"{SEVERAL}{uuid4()}" if several else str(result.id)
        mark(sig, {**self.headers, BATCH: str(Mark(self.id, member))})
        if several and (self.body is None or counts_nothing(self.app.backend)):
            if self.body is not None:
                self._leave()
            return None  # nobody would say that it has ended
        args, kwargs, more = self.given
        whole = sig.clone(args, kwargs, **more) if args or kwargs or more else sig
        try:
            return member, pack(self.app, whole)
        except EncodeError:  # no one serializer takes all that it is made of: it is not kept
            return member, b""

    def _leave(self) -> None:
        """Leave it to the task that polls. What is marked is of a chord that nobody knows."""
        if self.lost is None:
            self.lost = UnknownBatch(self.id)
            logger.info(
                "Chord %s is not tracked: a chain in its header ends in a group, and the result "
                "backend has no counter that knows when",
                self.id,
            )
            with suppress(StoreAway):  # said there
                self.ledger.drop(self.id)

    def sent(self) -> None:
        """All of it has been sent."""
        if self.lost is not None:
            return
        try:
            if self.results is not None:
                self.ledger.keep_results(self.id, self.results)
            self.ledger.sent(self.id)
        except StoreAway as exc:
            self._lose(exc)

    def _lose(self, exc: Exception) -> None:
        self.lost = exc
        log(
            logger,
            logging.WARNING,
            "Chord %s is sent, and not all of it is tracked: %s",
            self.id,
            exc,
        )


def _at_once(tasks: Iterator[Any], most: int) -> list[Any]:
    """Some of the tasks: those that come in a moment, and one at least."""
    chunk = []
    end = time.monotonic() + MOMENT
    for one in islice(tasks, most):
        chunk.append(one)
        if time.monotonic() >= end:
            break
    return chunk


def counts_nothing(backend: Any) -> bool:
    """Whether a task asks again and again whether a header has ended, in place of a counter."""
    return getattr(backend.apply_chord, "__func__", None) is Backend.apply_chord


def counts_itself(backend: Any) -> bool:
    """Whether the backend keeps the results of a header beside its counter."""
    return hasattr(backend, "_unpack_chord_result")


def forget_over(app: Any, group_id: str) -> bool:
    """Whether Celery's counter, too, is done with a chord; it does not know so any more.

    Since Celery 5.7 it drops what comes late to one that is over. What is sent again under the same
    ids is late as well until all of it is sent, and would never be complete.
    """
    backend = app.backend
    if not counts_itself(backend):
        return True
    key = backend.get_key_for_group(group_id, ".c")
    stands = backend.client.get(key)
    if stands == b"done":
        backend.client.delete(key)
    return stands in (None, b"done")


def last_id(sig: Any) -> str:
    """Id of the task by whose success all of a frozen signature has ended."""
    last = sig
    while (parts := parts_of(last)) is not None and parts:
        last = parts[-1]
    return str(last.options.get("task_id"))
