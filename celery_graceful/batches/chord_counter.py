"""The result backend of an app whose chords are tracked: it counts on, and says what it does.

Celery's backend decides when a header is complete, and sends the body with the results. Here it
says in the ledger that it has, or that it has failed the body. Two things it is kept from: to take
the tasks of a member for a header of their own, whose size would take the place of the chord's
(before Celery 5.7), and to count a part twice that comes again.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from celery import current_task
from celery.app.task import Context
from celery.signals import after_task_publish, before_task_publish
from celery.states import READY_STATES

from celery_graceful.batches.chord_gathering import all_counted
from celery_graceful.batches.chord_groups import SEVERAL, last_id, sent_for, track, unlock_later
from celery_graceful.batches.chord_ledger import ChordLedger
from celery_graceful.batches.kept_headers import are_kept
from celery_graceful.batches.marks import (
    CALLBACK,
    CHORD,
    COPY,
    Mark,
    callback_of,
    first_headers,
    member_of,
)
from celery_graceful.batches.model import ON_COMPLETE, End, Outcome
from celery_graceful.store.app_stores import find_store
from celery_graceful.store.store import StoreAway

__all__ = ["return_part", "tracked"]


class _Returning:
    """A part is returned: if a body is sent now, it is that of its chord.

    Args:
        ledger: Where the chord is known.
    """

    def __init__(self, ledger: ChordLedger) -> None:
        self.ledger = ledger
        self.copy = secrets.token_hex(8)
        self.sent: set[Mark] = set()

    def on_sent(self, body: Mark, *, ended: bool) -> None:
        """The body of a chord is on its way: what is still waited for has returned its part."""
        if body in self.sent:  # one of several tasks that it is made of
            return
        self.sent.add(body)
        try:
            # In this order: killed in between, it is sent again by the ledger, and one of the two
            # runs. Else these would be waited for when all is over.
            end_several(self.ledger, body.batch, Outcome.SUCCEEDED)
            self.ledger.sent_by_celery(*body, ended=ended)
        except StoreAway:
            pass  # said there; a second copy is left out


def end_several(ledger: ChordLedger, chord: str, outcome: Outcome) -> None:
    """End members that have no last task of their own: the header is over, and they with it."""
    pending = ledger.members_pending(chord)
    ledger.end([End(chord, one, outcome) for one in pending if one.startswith(SEVERAL)])


_returning: ContextVar[_Returning | None] = ContextVar("graceful_returning", default=None)


def _body_of(headers: Any) -> Mark | None:
    """The chord whose body a task begins."""
    chord = headers.get(CHORD) if headers else None
    return callback_of(headers) or (Mark(chord, ON_COMPLETE) if isinstance(chord, str) else None)


def _before_publish(headers: Any = None, **_: Any) -> None:
    if not headers or CALLBACK not in headers or COPY in headers:
        return
    now = _returning.get()
    if now is not None:
        headers[COPY] = now.copy
    elif current_task and current_task.name == "celery.chord_unlock":
        headers[COPY] = secrets.token_hex(8)


def _after_publish(headers: Any = None, **_: Any) -> None:
    now = _returning.get()
    body = None if now is None else _body_of(headers)
    if now is not None and body is not None:
        now.on_sent(body, ended=CALLBACK not in headers)


class _Tells:
    """Mixed into Celery's result backends."""

    app: Any
    #: Celery's class.
    plain: type

    def set_chord_size(self, group_id: str, chord_size: int) -> Any:
        """Not for the tasks of a member: they are counted as the chord's already."""
        if sent_for() != group_id:
            super().set_chord_size(group_id, chord_size)  # type: ignore[misc]

    def fallback_chord_unlock(self, header_result: Any, body: Any, **kwargs: Any) -> Any:
        """Without a counter a task polls: not for chords whose body the ledger has sent."""
        poll = partial(super().fallback_chord_unlock, header_result, body, **kwargs)  # type: ignore[misc]
        if not unlock_later(self.app, header_result.id, poll):
            poll()

    def on_chord_part_return(self, request: Any, state: Any, result: Any, **kwargs: Any) -> Any:
        """A part of a header has ended."""
        body = _body_of(first_headers(request.chord))
        # A body may be a chord itself, whose parts belong to another group.
        is_its_own = body is not None and body.batch == request.group
        store = find_store(self.app) if is_its_own else None
        if store is None:
            return super().on_chord_part_return(request, state, result, **kwargs)  # type: ignore[misc]
        if not self._counts_once(request):
            return None
        ledger = ChordLedger(store)
        are_kept()
        with _returned_to(_Returning(ledger)):
            super().on_chord_part_return(request, state, result, **kwargs)  # type: ignore[misc]
        if _comes_again(request) and all_counted(self, request.group):
            # Who was to send the body may have died. The ledger does so when all have ended.
            try:
                end_several(ledger, request.group, Outcome.SUCCEEDED)
            except StoreAway:
                pass  # said there; found to stand still

    def chord_error_from_stack(self, callback: Any, exc: Any = None) -> Any:
        """The body is not run: its errbacks are, and whoever waits for it hears that it failed."""
        try:
            return super().chord_error_from_stack(callback, exc)  # type: ignore[misc]
        finally:
            headers = first_headers(callback)
            body, member = _body_of(headers), member_of(headers)
            store = find_store(self.app) if body or member else None
            if store is not None:
                self._say_failed(ChordLedger(store), body, member)

    def __reduce__(self, *args: Any, **kwargs: Any) -> Any:
        reduced: Any = super().__reduce__(*args, **kwargs)
        return reduced[0], (self.plain, *reduced[1][1:])

    @staticmethod
    def _say_failed(ledger: ChordLedger, body: Mark | None, member: Mark | None) -> None:
        try:
            if body is not None:
                end_several(ledger, body.batch, Outcome.REVOKED)  # nobody waits for them
                ledger.sent_by_celery(*body, ended=True)
            if member is not None:
                ledger.end([End(*member, Outcome.FAILED)])
        except StoreAway:
            pass  # said there; it is found to stand still

    def _counts_once(self, request: Any) -> bool:
        """Whether a part can be counted: what was counted of it before is known, or taken back.

        Where that cannot be told, what comes again is not counted: when all members have ended, the
        ledger has the body sent without the counter.
        """
        if hasattr(self, "_chord_part_return_script"):
            return True
        if not hasattr(self, "_unpack_chord_result"):
            return not _comes_again(request)
        backend: Any = self
        client, key = backend.client, backend.get_key_for_group(request.group, ".j")
        in_order = backend._chord_zset
        index = "+inf" if request.group_index is None else request.group_index
        before = client.zrangebyscore(key, index, index) if in_order else client.lrange(key, 0, -1)
        for part in before:
            if backend.decode(part)[1] == request.id:
                client.zrem(key, part) if in_order else client.lrem(key, 0, part)
        return True


@contextmanager
def _returned_to(returning: _Returning) -> Iterator[None]:
    token = _returning.set(returning)
    try:
        yield
    finally:
        _returning.reset(token)


def _comes_again(request: Any) -> bool:
    return bool((getattr(request, "delivery_info", None) or {}).get("redelivered"))


def return_part(app: Any, sig: Any) -> None:
    """Count a part of a header whose result is stored; nothing, if it is no part of one.

    Args:
        app: The Celery app.
        sig: As it would be sent again, with its id.
    """
    options, backend = sig.options, app.backend
    if not options.get("chord") or not _body_of(first_headers(options["chord"])):
        return
    last = last_id(sig)
    meta = backend.get_task_meta(last, cache=False)
    if meta["status"] in READY_STATES:
        request = Context(
            id=last,
            group=options.get("group_id"),
            group_index=options.get("group_index"),
            chord=options["chord"],
            delivery_info={"redelivered": True},
        )
        backend.on_chord_part_return(request, meta["status"], meta["result"])


_classes: dict[type, type] = {}


def tracked(backend_class: type) -> type:
    """A class of backends derived from Celery's, and all groups looked at from now on."""
    track()
    before_task_publish.connect(_before_publish, weak=False, dispatch_uid="graceful_chords")
    after_task_publish.connect(_after_publish, weak=False, dispatch_uid="graceful_chords")
    if backend_class not in _classes:
        name = f"Tracked{backend_class.__name__}"
        plain = getattr(backend_class, "plain", backend_class)
        _classes[backend_class] = type(name, (_Tells, backend_class), {"plain": plain})
    return _classes[backend_class]
