"""Chords without workers: messages are taken by hand, and their ends told as workers do."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery, _state, chord
from celery.app.task import Context

from celery_graceful import Graceful
from celery_graceful.batches.callback_publishing import publish_due
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.member_part import CallbackEnd, part_of
from celery_graceful.batches.model import Due, Outcome
from celery_graceful.batches.status import Status
from celery_graceful.store.app_stores import find_store
from tests.conftest import RedisDB
from tests.support.workers import TIMEOUT

__all__ = ["ByHand", "Killed", "by_hand", "claim_runs_out", "dies", "stands_still"]


class Killed(BaseException):
    """Where a process is killed."""


class ByHand:
    """An app, and what a worker does with its messages.

    Args:
        db: For broker, store and results.
        tracked: With chords in the ledger; else it is plain Celery.
    """

    def __init__(self, db: RedisDB, *, tracked: bool) -> None:
        self.client, self.tracked = db.client, tracked
        self.app = Celery("by_hand", broker=db.url, backend=db.backend_url, set_as_current=False)
        self.app.conf.result_chord_join_timeout = TIMEOUT
        if tracked:
            self.app.conf.graceful_track_chords = True
            Graceful(self.app)
        self.results: list[Any] = []

        @self.app.task(name="add", shared=False)
        def add(*args: Any) -> None: ...

        @self.app.task(name="failed", shared=False)
        def failed(request: Any, exc: Any, traceback: Any) -> None:
            self.failed.append(str(exc))

        self.add, self.errback = add, failed
        #: What the errback was told.
        self.failed: list[str] = []

    def apply(self, signature: Any) -> str:
        """Send it; the id of its result."""
        result = signature.apply_async()
        self.results.append(result)
        return str(result.id)

    def chord(self, size: int, *, errback: bool = False) -> tuple[Any, ...]:
        """Send one whose header is so many tasks; the id of its body, and their messages."""
        body = self.add.s()
        if errback:
            body = body.on_error(self.errback.s())
        return self.apply(chord([self.add.s(i) for i in range(size)], body)), *self.take()

    def take(self) -> list[Context]:
        """All messages in the queue, as what their tasks ask for."""
        contexts = []
        while raw := self.client.rpop("celery"):
            message = json.loads(raw)
            args, kwargs, embed = json.loads(base64.b64decode(message["body"]))
            delivery = {"delivery_info": message["properties"]["delivery_info"]}
            contexts.append(
                Context(message["headers"], args=args, kwargs=kwargs, **embed, **delivery)
            )
        return contexts

    def returns(self, context: Context, result: Any = 1) -> None:
        """Its task has returned: the backend is told, and what comes next is sent."""
        self.app.backend.mark_as_done(context.id, result, request=context)
        rest = list(context.chain or [])
        if rest:
            following = self.app.signature(rest.pop())
            following.apply_async((result,), chain=rest, parent_id=context.id)

    def ends(self, context: Context, result: Any = 1) -> None:
        """Its task has returned, and its message is acknowledged."""
        self.returns(context, result)
        self.acknowledged(context)

    def acknowledged(self, context: Context, outcome: Outcome = Outcome.SUCCEEDED) -> None:
        """The ledger hears of it, as from a worker that knows of one."""
        part = part_of(vars(context)) if self.tracked else None
        if part is None or (outcome is Outcome.SUCCEEDED and context.id != part.last):
            return
        end = part.end(outcome)
        if isinstance(end, CallbackEnd):
            self.publish(self.ledger.callback_ended(*end))
        else:
            self.publish(self.ledger.end([end]))

    def publish(self, due: list[Due]) -> None:
        """As the outbox of a worker does."""
        for one in due:
            publish_due(self.app, self.ledger.store, one)

    def comes_again(self, context: Context) -> Context:
        """The same message, delivered again."""
        context.delivery_info["redelivered"] = True
        return context

    @property
    def ledger(self) -> BatchLedger:
        store = find_store(self.app)
        assert store is not None
        return BatchLedger(store)

    def status(self, chord_id: str) -> Status:
        return self.ledger.status(chord_id)

    def bodies(self, body: str) -> list[Context]:
        """What the body was sent as; its copies that would be left out are not among them."""
        sent = [one for one in self.take() if one.id == body]
        return [one for one in sent if not self.tracked or self.may_run(one)]

    def may_run(self, context: Context) -> bool:
        """Whether this copy of a body is the one that runs."""
        part = part_of(vars(context))
        assert part is not None
        copy = context.graceful_copy
        return self.ledger.may_run(part.batch, part.name, copy)

    def given(self, body: str) -> list[Any]:
        """What the body was sent with, each time that it runs."""
        return [context.args[0] for context in self.bodies(body)]


@contextmanager
def by_hand(db: RedisDB, *, tracked: bool) -> Iterator[ByHand]:
    """Before 5.7 a backend restores groups by the current app."""
    one, before = ByHand(db, tracked=tracked), _state._get_current_app()
    one.app.set_current()
    try:
        yield one
    finally:
        before.set_current()
        one.results.clear()
        one.app.close()


def dies(*args: Any, **kwargs: Any) -> None:
    raise Killed


def claim_runs_out(one: ByHand, group_id: str) -> None:
    """What a dispatcher has to itself since 5.7, for 10 s by default."""
    one.app.backend.client.delete(one.app.backend.get_key_for_group(group_id, ".c"))


def stands_still(one: ByHand, monkeypatch: pytest.MonkeyPatch, context: Any) -> None:
    """Between its decision to send the body and the sending, the header comes again elsewhere."""
    sent: list[Any] = []
    send = one.app.amqp.send_task_message

    def late(*args: Any, **kwargs: Any) -> Any:
        if not sent:
            sent.append(None)
            claim_runs_out(one, context.group)
            one.returns(context)
        return send(*args, **kwargs)

    monkeypatch.setitem(one.app.amqp.__dict__, "send_task_message", late)
