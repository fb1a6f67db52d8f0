"""Members, made of the signatures that a batch is given.

A chain or a chord is one member, that ends with its last task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from celery import chord, group
from celery.canvas import _chain, maybe_signature
from celery.exceptions import QueueNotFound
from celery.utils.time import maybe_make_aware
from kombu.exceptions import EncodeError

from celery_graceful.batches.kept_headers import headers_here, keep
from celery_graceful.batches.marks import BATCH, Mark, all_of, parts_of
from celery_graceful.batches.packing import bind, pack
from celery_graceful.batches.search_state import callback_name
from celery_graceful.batches.signatures import named, options_in
from celery_graceful.messages.validation import LONGEST, has_text
from celery_graceful.system.describe import describe

__all__ = ["Member", "Members", "check_member", "last_of", "unwrapped"]


class Member(NamedTuple):
    """A member that can be sent.

    Attributes:
        id: Of the task whose success ends it.
        signature: What is sent.
        packed: What is kept, so that it can be sent again.
        by_place: Its id follows from its place among the members.
    """

    id: str
    signature: Any
    packed: bytes
    by_place: bool = False


def last_of(sig: Any, what: str) -> Any:
    """The signature of the task that is the last of all that a signature is made of.

    Args:
        sig: The signature.
        what: What it was given as, for people.

    Raises:
        ValueError: There is none, or more than one.
    """
    last = sig
    while parts_of(last) is not None:
        if isinstance(last, chord):
            inside, why = [last.body] * (last.body is not None), "is a chord without a body"
        else:
            inside, why = list(last.tasks)[-1:], "has no tasks"
            if isinstance(last, group) and len(last.tasks) > 1:
                inside, why = [], "ends in a group, so nobody knows which task is its last"
        if not inside:
            mend = "end it with a task, as in chain(first.s(), group(...), last.si())"
            mend = "leave it out, or give it some" if why == "has no tasks" else mend
            raise ValueError(f"{what} {named(sig)} {why}: {mend}")
        (last,) = inside
    return last


def unwrapped(sig: Any) -> Any:
    """A signature whose last task is in no group of one: Celery keeps an id for the group then.

    Args:
        sig: The signature, a copy: what it is made of is changed.

    Returns:
        That one; in place of a group of one its task, with the options of the group.
    """
    parts = parts_of(sig)
    if isinstance(sig, group) and parts and len(parts) == 1:
        return unwrapped(parts[0].clone(**options_in(sig)))
    if isinstance(sig, chord) and sig.body is not None:
        sig.kwargs["body"] = unwrapped(sig.body)
    elif isinstance(sig, _chain) and parts:
        sig.kwargs["tasks"] = [*parts[:-1], unwrapped(parts[-1])]
    return sig


def _sent_of(sig: Any) -> Iterator[Any]:
    """The tasks that are sent with a signature, with all of their arguments."""
    inner = parts_of(sig)
    if inner is None:
        yield sig
    elif not sig.args and sig.kwargs.keys() <= _PARTS and not sig.kwargs.get("kwargs"):
        many = inner[:-1] if isinstance(sig, chord) else inner[:1]
        for part in inner if isinstance(sig, group) else many:
            yield from _sent_of(part)


#: Of chains, groups and chords: with more than that their tasks are called with more, too.
_PARTS = frozenset(("tasks", "header", "body", "kwargs"))


def check_member(app: Any, sig: Any, what: str) -> str | None:
    """See whether a signature can be a member, as far as that is known before it is sent.

    Args:
        app: The Celery app.
        sig: The signature.
        what: What it was given as, for people.

    Returns:
        The id that its user gave it.

    Raises:
        TypeError: Its task does not take its arguments.
        ValueError: It has no last task, there is no such queue, or its id cannot be used, or means
            something else.
        NotImplementedError: It needs a result backend, and there is none.
    """
    last = last_of(sig, what)
    for first in _sent_of(sig):
        _check_call(app, first, what)
    for later in all_of(sig) if last is not sig else ():
        if later.immutable and parts_of(later) is None:  # its arguments are all that it gets
            _check_call(app, later, what)
    if last is not sig and has_chord(sig) and not app.conf.task_always_eager:
        app.backend.ensure_chords_allowed()
    own = last.options.get("task_id") or sig.options.get("task_id")
    if own and not has_text(own):
        raise ValueError(f"{what} has the id {own!r}: give text of up to {LONGEST} characters")
    if own and callback_name(own) is not None:
        raise ValueError(f"{what} has the id {own}, which means a callback: give it another")
    return own  # type: ignore[no-any-return]


def _check_call(app: Any, sig: Any, what: str) -> None:
    """Celery refuses it where it is sent: a member would be registered by then."""
    task = app.tasks.get(sig.task)
    takes = getattr(task, "__header__", None)
    try:
        if takes is not None and task.typing:
            takes(*sig.args, **sig.kwargs)
        if not app.conf.task_create_missing_queues:
            app.amqp.router.route(dict(sig.options), sig.task, sig.args, sig.kwargs)
    except TypeError as exc:
        raise TypeError(f"{what} {named(sig)} cannot be called: {exc}") from exc
    except QueueNotFound as exc:
        raise ValueError(f"{what} {named(sig)} cannot be sent: {describe(exc)}") from exc


def has_chord(sig: Any) -> bool:
    """Whether Celery needs a result backend for it."""
    if isinstance(sig, chord):
        return True
    tasks = list(sig.tasks) if isinstance(sig, _chain) else []
    return any(has_chord(one) or isinstance(one, group) for one in tasks)


class Members:
    """Makes members of the signatures that are given to one batch.

    Args:
        app: The Celery app.
        batch: Id of the batch.
        counted: Whether ids are those that the same members, in the same order, had before:
            a producer that died can begin anew. Else each is new.
    """

    def __init__(self, app: Any, batch: str, *, counted: bool) -> None:
        self.app = app
        self.batch = batch
        self.counted = counted
        self.count = 0

    def make(self, given: Any, what: str) -> Member:
        """One member; what was given is left as it was.

        Args:
            given: A signature.
            what: What it was given as, for people.

        Raises:
            TypeError: Its arguments cannot be serialized.
            Exception: As ``check_member``.
        """
        self.count += 1
        sig = unwrapped(maybe_signature(given, app=self.app, clone=True))
        own = check_member(self.app, sig, what)
        for one in (last_of(sig, what), sig):
            one.options.pop("task_id", None)
        packed = self._pack(sig, what)
        member = Mark(self.batch, own or self._new_id(packed))
        headers = headers_here(self.app)
        keep(sig, headers)
        # Of all that is sent at once; seconds of what comes later count from then.
        if sum(_fix_times(self.app, first) for first in _sent_of(sig)) or headers:
            packed = self._pack(sig, what)
        bind(sig, member, {BATCH: str(member)})
        return Member(member.name, sig, packed, self.counted and not own)

    def _new_id(self, packed: bytes) -> str:
        if not self.counted:
            return str(uuid4())
        seed = f"{self.batch}/{self.count}/".encode() + packed
        return str(UUID(bytes=hashlib.sha1(seed).digest()[:16], version=5))

    def _pack(self, sig: Any, what: str) -> bytes:
        try:
            return pack(self.app, sig)
        except EncodeError as exc:
            raise TypeError(
                f"{what} {named(sig)} cannot be serialized: {describe(exc)}; give arguments that "
                "its serializer takes, such as ids in place of objects"
            ) from exc


def _fix_times(app: Any, sig: Any) -> bool:
    """Turn what counts from now into moments: it may be sent again much later."""
    options = sig.options
    countdown = options.get("countdown")
    expires = options.get("expires", getattr(app.tasks.get(sig.task), "expires", None))
    if countdown:
        del options["countdown"]
        options["eta"] = _in(app, countdown)
    if isinstance(expires, (int, float)):
        options["expires"] = _in(app, expires)
        return True
    return bool(countdown)


def _in(app: Any, seconds: float) -> datetime:
    moment: datetime = maybe_make_aware(app.now() + timedelta(seconds=seconds), tz=app.timezone)
    return moment
