"""Batches of tasks that are run where they are sent: ``task_always_eager``, in tests.

The ledger is in this process's memory, and no store is asked. A member has ended when it was sent,
and callbacks run at once, so that ``apply_async`` returns when all of it is done.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery import states

from celery_graceful.batches.callbacks import signature_of
from celery_graceful.batches.expiry import has_expired
from celery_graceful.batches.members import Member
from celery_graceful.batches.model import (
    ON_COMPLETE,
    ON_FAILURE,
    ON_SUCCESS,
    SENT_LATER,
    Callback,
    Due,
    Opened,
    Outcome,
    Place,
    State,
)
from celery_graceful.batches.search_state import callback_name
from celery_graceful.batches.status import Status, how_it_stands
from celery_graceful.exceptions import BatchFinished, UnknownBatch
from celery_graceful.system.per_app import PerApp

__all__ = ["EagerLedger", "eager_ledger"]

#: Batches that are remembered: a long session of tests makes many.
MOST = 1000


@dataclass
class _Batch:
    id: str
    callbacks: Mapping[str, Callback]
    description: str
    properties: dict[str, Any]
    parent: str | None
    key: str
    state: State = State.OPEN
    pending: set[str] = field(default_factory=set)
    succeeded: set[str] = field(default_factory=set)
    failed: dict[str, Outcome] = field(default_factory=dict)
    fired: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    created: float = field(default_factory=time.time)
    finished: float | None = None


class EagerLedger:
    """What a process knows of the eager batches of one app; as ``BatchLedger``.

    Args:
        app: The Celery app.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self._batches: dict[str, _Batch] = {}

    def create(
        self,
        batch_id: str,
        *,
        callbacks: Mapping[str, Callback] | None = None,
        description: str = "",
        properties: Mapping[str, Any] | None = None,
        parent: str | None = None,
        inside: str | None = None,
        sender: str = "",
        place: Place | None = None,
        key: str = "",
        **_: Any,
    ) -> Opened:
        """Open a batch. What has the same key keeps nothing back: it is of another test."""
        if parent is not None:
            self._check(parent, inside)
            of = self._of(parent)
            standing = of.places.setdefault(place.name, batch_id) if place else batch_id
            if standing in self._batches:
                return Opened(standing, self._of(standing).state)
            of.pending.add(batch_id)
        while len(self._batches) >= MOST:
            del self._batches[next(iter(self._batches))]
        self._batches[batch_id] = _Batch(
            batch_id, callbacks or {}, description, dict(properties or {}), parent, key
        )
        self._batches[batch_id].state = State.SENDING if sender else State.OPEN
        return Opened(batch_id, None)

    def has_place(self, batch_id: str, place: str) -> bool:
        """Whether a batch inside of it stands in that place."""
        return place in self._of(batch_id).places

    def begin_sending(self, batch_id: str, sender: str = "") -> None:
        """Sending begins."""
        self._check(batch_id, None)
        self._of(batch_id).state = State.SENDING

    def still_sends(self, batch_id: str, sender: str, is_so: bool = True) -> None:
        """It is sent where it is made."""

    def add(
        self,
        batch_id: str,
        members: Iterable[tuple[str, bytes]],
        *,
        inside: str | None = None,
        **_: Any,
    ) -> int:
        """Register members."""
        self._check(batch_id, inside)
        of = self._of(batch_id)
        new = {member for member, _ in members}
        new -= self.known(batch_id, [*new])
        of.pending |= new
        return len(new)

    def known(self, batch_id: str, members: Sequence[str], *, ended: bool = False) -> set[str]:
        """Of some members, those that are registered; or only those that have run."""
        of = self._of(batch_id)
        there = set() if ended else of.pending
        return (of.succeeded | of.failed.keys() | there).intersection(members)

    def run(self, batch_id: str, members: Sequence[Member]) -> None:
        """Run members, one after the other, and the callbacks that become due.

        Raises:
            Exception: What one raised, with ``task_eager_propagates``; it has failed then.
        """
        for member in members:
            of = self._of(batch_id)
            # Celery runs what has expired all the same, where all is eager; a worker would not.
            if of.state is State.CANCELLED or has_expired(member.signature):
                self._end(of, member.id, Outcome.REVOKED)
                continue
            try:
                outcome = _outcome(member.signature.apply_async())
            except Exception:
                self._end(of, member.id, Outcome.FAILED)
                if self.app.conf.task_eager_propagates:
                    raise
            else:
                self._end(of, member.id, outcome)

    def sent(self, batch_id: str, sender: str = "") -> list[Due]:
        """All members have been sent, and have run."""
        of = self._of(batch_id)
        if of.state is not State.CANCELLED:
            of.state = State.SENT
        self._settle(of)
        return []

    def cancel(self, batch_id: str) -> list[Due]:
        """Cancel it: what has not run does not."""
        of = self._of(batch_id)
        if of.finished is None:
            of.state = State.CANCELLED
            for kid in self.kids(batch_id):
                self.cancel(kid)
            self._settle(of)
        return []

    def drop(self, batch_id: str, sender: str = "") -> list[Due]:
        """Forget it."""
        of = self._of(batch_id)
        del self._batches[batch_id]
        self._tell_parent(of, Outcome.REVOKED)
        return []

    def status(self, batch_id: str) -> Status:
        """How it stands."""
        of = self._of(batch_id)
        revoked = sum(how is Outcome.REVOKED for how in of.failed.values())
        return Status(
            id=of.id,
            state=of.state,
            total=len(of.pending) + len(of.succeeded) + len(of.failed),
            pending=len(of.pending),
            succeeded=len(of.succeeded),
            failed=len(of.failed) - revoked,
            revoked=revoked,
            missing=0,
            kids=sum(1 for _ in self.kids(batch_id)),
            created=of.created,
            moved=of.finished or of.created,
            finished=of.finished,
            description=of.description,
            properties=of.properties,
            parent=of.parent,
            key=of.key,
            callbacks={n: how_it_stands(n, of.fired.get(n), of.state) for n in of.callbacks},
        )

    def of_key(self, key: str) -> str | None:
        """Id of the last batch that has that key; ``None`` if there is none."""
        return next((of.id for of in reversed(self._batches.values()) if of.key == key), None)

    def state(self, batch_id: str) -> State | None:
        """What it is in; ``None`` if it is not known."""
        return self._batches[batch_id].state if batch_id in self._batches else None

    def kids_sent_later(self, batch_id: str) -> list[str]:
        """Ids of batches inside of it of which not all has been sent."""
        return [kid for kid in self.kids(batch_id) if self._of(kid).state in SENT_LATER]

    def kids(self, batch_id: str) -> Iterator[str]:
        """Batches inside of it that have not ended."""
        for one in list(self._batches.values()):
            if one.parent == batch_id and one.finished is None:
                yield one.id

    def messages(self, batch_id: str, members: Sequence[str]) -> dict[str, bytes]:
        """None are kept."""
        return {}

    def outcomes(self, batch_id: str, members: Sequence[str]) -> dict[str, str]:
        """How some of its members have failed."""
        failed = self._of(batch_id).failed
        return {member: failed[member].value for member in members if member in failed}

    # -- what follows ------------------------------------------------------------------

    def _of(self, batch_id: str) -> _Batch:
        if batch_id not in self._batches:
            raise UnknownBatch(batch_id)
        return self._batches[batch_id]

    def _check(self, batch_id: str, inside: str | None) -> None:
        of = self._of(batch_id)
        if of.state is State.SENT and inside is not None:
            name = callback_name(inside)
            if inside in of.pending or (name and of.fired.get(name) == "published"):
                return
        if of.state not in SENT_LATER:
            raise BatchFinished(batch_id, of.state.value)

    def _end(self, of: _Batch, member: str, outcome: Outcome) -> None:
        of.pending.discard(member)
        if outcome is Outcome.SUCCEEDED:
            of.succeeded.add(member)
        else:
            of.failed[member] = outcome
        if outcome is Outcome.FAILED:
            self._fire(of, ON_FAILURE)
        self._settle(of)

    def _settle(self, of: _Batch) -> None:
        waits = of.pending or any(self.kids(of.id)) or of.state in SENT_LATER
        if waits or of.finished is not None:
            return
        self._fire(of, ON_COMPLETE)
        if not of.failed and of.state is not State.CANCELLED:
            self._fire(of, ON_SUCCESS)
        if of.pending or of.finished is not None or "published" in of.fired.values():
            return  # a callback has added something, or is the one that does
        of.finished = time.time()
        if of.state is State.SENT:
            of.state = State.DONE
        outcome = Outcome.SUCCEEDED
        if of.failed:
            only_revoked = set(of.failed.values()) == {Outcome.REVOKED}
            outcome = Outcome.REVOKED if only_revoked else Outcome.FAILED
        elif of.state is State.CANCELLED:
            outcome = Outcome.REVOKED
        self._tell_parent(of, outcome)

    def _tell_parent(self, of: _Batch, outcome: Outcome) -> None:
        parent = self._batches.get(of.parent or "")
        if parent is not None and of.id in parent.pending:
            self._end(parent, of.id, outcome)

    def _fire(self, of: _Batch, name: str) -> None:
        if name not in of.callbacks or name in of.fired:
            return
        of.fired[name] = "published"
        try:
            status = self.status(of.id)
            signature_of(self.app, of.callbacks[name], status).apply_async()
        except Exception:
            if self.app.conf.task_eager_propagates:
                raise
        finally:
            of.fired[name] = "ended"


def _outcome(result: Any) -> Outcome:
    state = getattr(result, "state", states.SUCCESS)
    if state in (states.FAILURE, states.REJECTED):
        return Outcome.FAILED
    return Outcome.REVOKED if state == states.REVOKED else Outcome.SUCCEEDED


_ledgers: PerApp[EagerLedger] = PerApp()


def eager_ledger(app: Any) -> EagerLedger:
    """That of an app."""
    ledger = _ledgers.get(app)
    return _ledgers.setdefault(app, EagerLedger(app)) if ledger is None else ledger
