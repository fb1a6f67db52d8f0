"""Batches, as operators see them: those that have not ended, and remedies for what is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

from celery_graceful.batches import search_state
from celery_graceful.batches.callback_publishing import publish_due
from celery_graceful.batches.findings import Missing, noted
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.manual_remedies import CallbackRuns, HeaderRuns, Remedies
from celery_graceful.batches.model import Due, State
from celery_graceful.batches.status import Status
from celery_graceful.exceptions import UnknownBatch
from celery_graceful.operations.asking import BROKER_TIMEOUT, check_rabbit
from celery_graceful.operations.batch_records import (
    FailedMember,
    MissingMember,
    Resent,
    Standing,
    Unknown,
)
from celery_graceful.operations.pasting import pasted
from celery_graceful.operations.records import Done, Why
from celery_graceful.operations.stores import NoStore
from celery_graceful.store.app_stores import find_store
from celery_graceful.store.store import Store, StoreAway, StoreRefused
from celery_graceful.system.describe import describe

__all__ = ["Batches", "NotSent", "awaited"]

#: Members whose place is told, and seconds for the search: workers are asked for each.
MOST, PATIENCE = 3, 5.0

#: Members that have failed, and are named.
MOST_FAILED = 20

#: Batches in which a task is looked for, those that have stood still for longest.
SEARCHED = 1000

#: What is said of a batch whose producer is given up.
CLOSED = "complete with the members that it has"


class NotSent(Exception):
    """A callback has become due, and the broker does not take it: a worker sends it."""


class Batches:
    """The batches of one app. All of it raises ``StoreAway``, and ``NoStore``.

    Args:
        app: The Celery app.
        why: Says where a task is.
    """

    def __init__(self, app: Any, why: Callable[[str], Why]) -> None:
        self.app, self._why = app, why

    def unfinished(self) -> list[Standing]:
        """Those that have not ended, that which has stood still for longest first."""
        remedies = self._remedies()
        now = remedies.ledger.now()
        return [self._standing(remedies, one, now) for one in remedies.unfinished()]

    def with_failures(self) -> list[Standing]:
        """Those of which members have failed, that which has stood still for longest first.

        Also those that have ended, as long as they are kept (``graceful_batch_linger``). All keys
        of the store are looked at for that: a second or so where there are a million.
        """
        remedies = self._remedies()
        found = remedies.ledger.statuses(remedies.ledger.with_failures())
        now = remedies.ledger.now()
        return [self._standing(remedies, one, now) for one in sorted(found, key=lambda s: s.moved)]

    def find(self, named: str) -> str:
        """Id of the batch of that id, or else of that key; what was given, if there is none."""
        ledger = self._remedies().ledger
        return named if ledger.state(named) else ledger.of_key(named) or named

    def batch(self, batch_id: str, *, look: bool = False) -> Standing:
        """One of them.

        Args:
            batch_id: Its id.
            look: Look for missing members now, and where some of the others are: that takes some
                seconds.

        Raises:
            UnknownBatch: There is none.
        """
        remedies = self._remedies()
        if look:
            missing = tuple(remedies.look(batch_id)[batch_id])
            others = tuple(islice(self._others(remedies, batch_id, missing), MOST))
            status = remedies.ledger.status(batch_id)
            named = _missing(remedies, batch_id, missing)
            left = status.is_left(remedies.ledger.now())
            unknown = _unknown(remedies.unknown.values())
            return Standing(status, named, others, _failed(remedies, status), left, unknown)
        status = remedies.ledger.status(batch_id)
        found = self._standing(remedies, status, remedies.ledger.now())
        kids = _in_need_first(remedies.ledger, {*remedies.ledger.kids(batch_id)})
        return replace(found, others=tuple(_where(one) for one in kids[:MOST] if one.missing))

    def resend(
        self,
        batch_id: str,
        members: Sequence[str] = (),
        *,
        failed: bool = False,
        unsure: bool = False,
        close: bool = False,
    ) -> Resent:
        """Send missing members again, under their old ids; or end them as their results say.

        So in the batches inside of it, unless members are named.

        Args:
            batch_id: The batch.
            members: Those, wherever they are. Without: what is missing, which is looked for first.
            failed: Those that have failed, in the place of what is missing.
            unsure: Also those that may be somewhere all the same, or are.
            close: Its producer is dead: it is complete with the members that it has.

        Raises:
            UnknownBatch: There is none.
            NotSent: The broker does not take a callback.
            BrokerAway: It does not answer; nothing was done.
        """
        remedies = self._remedies()
        check_rabbit(self.app)
        if members:
            return self._resend(remedies, batch_id, members, failed=failed, close=close)
        some = remedies.look_failed(batch_id) if failed else remedies.look(batch_id)
        options: dict[str, Any] = {"failed": failed, "unsure": unsure}
        first = self._resend(remedies, batch_id, found=some.pop(batch_id), close=close, **options)
        inside = []
        for kid, found in some.items():
            with suppress(UnknownBatch):  # it was forgotten meanwhile
                inside.append(self._resend(remedies, kid, found=found, **options))
        said = tuple(one for one in inside if one.sending or not one.found_nothing)
        return replace(first, inside=said)

    def _resend(
        self, remedies: Remedies, batch_id: str, members: Sequence[str] = (), **options: Any
    ) -> Resent:
        was_sending = remedies.ledger.state(batch_id) is State.SENDING
        done = remedies.resend(batch_id, members, **options)
        is_sending = remedies.ledger.state(batch_id) is State.SENDING
        closed = was_sending and not is_sending
        unknown = _unknown(some for some in [remedies.unknown.get(batch_id)] if some)
        said = [str(done)] if done or done.left or not closed else []
        said += [f"{unknown.said} cannot be known"] if unknown else []
        said += [CLOSED] if closed else []
        return Resent(
            batch_id,
            tuple(done.ended),
            tuple(done.resent),
            tuple(done.failed),
            tuple(done.called),
            done.left,
            is_sending,
            closed,
            ", ".join(said),
            unknown=unknown,
        )

    def callback(self, batch_id: str, name: str, *, force: bool = False) -> Done:
        """Run a callback now, whatever the batch waits for.

        Args:
            batch_id: The batch.
            name: Of the callback.
            force: Also while it runs: then it runs twice.

        Raises:
            BrokerAway: The broker does not answer; nothing was done.
        """
        remedies = self._remedies()
        try:
            has = remedies.ledger.status(batch_id).callbacks
            if name not in has:
                there = ", ".join(has) or "none"
                return Done(batch_id, False, f"there is no {name}; it has {there}")
            if has[name] == "ended":
                return Done(batch_id, False, f"{name} has ended, and is not sent once more")
            check_rabbit(self.app)
            sent = remedies.callback(batch_id, name, force=force)
        except (UnknownBatch, CallbackRuns, HeaderRuns) as exc:
            return Done(batch_id, False, str(exc))
        return Done(batch_id, True, f"{name} {'sent' if sent else 'is about to be sent'}")

    def complete(self, batch_id: str) -> Done:
        """End a batch by force: who has not ended has failed."""
        try:
            if self._remedies().ledger.status(batch_id).finished is not None:
                return Done(batch_id, True, "has ended before, with its callbacks")
        except UnknownBatch as exc:
            return Done(batch_id, False, str(exc))
        return self._do(Remedies.complete, batch_id, "completed")

    def drop(self, batch_id: str) -> Done:
        """Forget a batch. Its members run on, and no callback is sent."""
        return self._do(Remedies.drop, batch_id, "dropped")

    def _do(self, remedy: Callable[[Remedies, str], object], batch_id: str, said: str) -> Done:
        remedies = self._remedies()
        try:
            remedy(remedies, batch_id)
        except UnknownBatch as exc:
            return Done(batch_id, False, str(exc))
        return Done(batch_id, True, said)

    def _standing(self, remedies: Remedies, status: Status, now: float) -> Standing:
        missing = tuple(noted(remedies.ledger, status.id)) if status.missing else ()
        named = _missing(remedies, status.id, missing)
        failed = _failed(remedies, status)
        return Standing(status, named, failed=failed, left=status.is_left(now))

    def _others(
        self, remedies: Remedies, batch_id: str, missing: Sequence[Missing]
    ) -> Iterator[Why]:
        """Where pending members are; not those whose chain is at another task."""
        known = {one.member for one in missing}
        kids = {*remedies.ledger.kids(batch_id)} - known
        known |= kids
        yield from map(_where, _in_need_first(remedies.ledger, kids))
        end = time.monotonic() + PATIENCE
        for member in remedies.ledger.members_pending(batch_id):
            if time.monotonic() > end:  # RabbitMQ does not say what is in its queues
                return
            if member not in known:
                known.add(member)
                found = self._why(member)
                if found.state != "unknown":
                    yield found

    def _remedies(self) -> Remedies:
        store = find_store(self.app)
        if store is None:
            raise NoStore(
                "there is no Redis to keep batches in: neither the broker nor the result backend "
                "is one, and graceful_store is not set"
            )
        return Remedies(self.app, BatchLedger(store), self._publisher(store))

    def _publisher(self, store: Store) -> Callable[[Sequence[Due]], None]:
        def publish(due: Sequence[Due]) -> None:
            for one in due:
                try:
                    publish_due(self.app, store, one, BROKER_TIMEOUT)
                except StoreAway:
                    raise
                except Exception as exc:  # brokers have errors of many kinds
                    said = f"{one.name} is sent by a worker: {describe(exc)}"
                    raise NotSent(said) from exc

        return publish


def awaited(store: Store, found: Why) -> Why:
    """What is known of a task that is nowhere: whether a batch waits for it, or is meant itself.

    Args:
        store: Of the batches.
        found: What is known of it without.

    Raises:
        StoreAway: It does not answer.
    """
    ledger = BatchLedger(store)
    try:
        if ledger.state(found.id) is not None:
            mend = pasted(["batches", "show"], found.id)
            return replace(found, sentences=("it is a batch, and no task",), mend=mend)
        for batch in ledger.stood_still(0)[:SEARCHED]:
            if ledger.pending(batch, [found.id]):
                said = f"the batch {batch} waits for it"
                mend = pasted(["batches", "show", "--look"], batch)  # it may be on its way
                return replace(found, sentences=(*found.sentences, said), mend=mend)
    except StoreRefused:  # it allows no batches
        pass
    return found


def _in_need_first(ledger: BatchLedger, batches: Iterable[str]) -> list[Status]:
    """How batches stand: those first that somebody has to do something about."""
    found = ledger.statuses(batches)
    return sorted(found, key=lambda s: (not s.missing, s.state is not State.SENDING, s.moved))


def _where(status: Status) -> Why:
    """Where a member is that is a batch: with its own members, and callbacks."""
    under_way = [name for name, how in status.callbacks.items() if how in ("due", "published")]
    said = f"it is a batch, {status.state.value}: {status.pending} of {status.total} pending"
    if status.missing:
        said += f", {status.missing} missing"
    if under_way:
        said += f", {' and '.join(under_way)} under way"
    if status.description:
        said += f"  {status.description}"
    stuck = bool(status.missing)
    mend = pasted(["batches", "show"], status.id)
    return Why(status.id, "", "batch", (said,), stuck=stuck, mend=mend)


def _missing(
    remedies: Remedies, batch_id: str, missing: Sequence[Missing]
) -> tuple[MissingMember, ...]:
    tasks = remedies.tasks_of(batch_id, [one.member for one in missing])
    return tuple(MissingMember(*one, tasks[one.member]) for one in missing)


def _unknown(some: Iterable[search_state.Unknown]) -> Unknown | None:
    """All of it in one; the doubt that lasts longest counts."""
    every = list(some)
    if not every:
        return None
    why, age, mend = max((one.doubt for one in every), key=lambda doubt: doubt.age)
    return Unknown(sum(one.number for one in every), why, mend, age)


def _failed(remedies: Remedies, status: Status) -> tuple[FailedMember, ...]:
    members = remedies.failed(status.id, MOST_FAILED) if status.failed else []
    found = []
    for member, task in remedies.tasks_of(status.id, members).items():
        kid = None
        if task is None:
            with suppress(UnknownBatch):
                kid = remedies.ledger.status(member)
        found.append(FailedMember(member, task, bool(kid), kid.description if kid else ""))
    return tuple(found)
