"""``Batch``: the user's side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext, suppress
from itertools import chain, islice
from typing import Any

from celery import current_app, current_task
from celery.utils.log import get_logger

from celery_graceful.batches.adding import at_it, check_is_ours, new_sender, opened, who_adds
from celery_graceful.batches.callback_publishing import publish_all
from celery_graceful.batches.cancellations import tell_workers
from celery_graceful.batches.current_member import adds_as, here
from celery_graceful.batches.eager import EagerLedger
from celery_graceful.batches.ledger import CHUNK, BatchLedger
from celery_graceful.batches.ledgers import ledger_of
from celery_graceful.batches.model import SENT_LATER, Adds, Due, Opened, Place, State
from celery_graceful.batches.progress import Bar
from celery_graceful.batches.sending import Sending
from celery_graceful.batches.sent_in_part import (
    how_to_go_on,
    say_it_stays,
    say_left,
    sent_before,
    sent_by_another,
    sent_whole,
)
from celery_graceful.batches.signatures import Recalled, flatten, named, size_of, visible
from celery_graceful.batches.status import Status
from celery_graceful.batches.unsent import ANOTHER, Unsent, app_of
from celery_graceful.batches.waiting import wait_until_over
from celery_graceful.batches.whereabouts import broker_of
from celery_graceful.exceptions import BatchFinished, UnknownBatch
from celery_graceful.store.app_stores import settings_of
from celery_graceful.store.store import StoreAway
from celery_graceful.system.arguments import check_seconds
from celery_graceful.system.describe import describe

__all__ = ["Batch", "current_batch"]

logger = get_logger(__name__)


class Batch(Unsent):
    """Tasks that are sent together, and callbacks that are sent once when they have ended.

    Nothing is sent, or written anywhere, before ``apply_async``.

    Args:
        on_success: Signature that is sent when all members have succeeded, also where some had
            failed before and were run again.
        on_complete: Signature that is sent when each member has ended, however it has.
        on_failure: Signature that is sent once, when the first member has failed for good.
        description: For people, such as ``"invoices of May"``.
        properties: A small dict of yours, of what JSON can say.
        key: One of yours, such as ``"invoices 2026-05"``: only one batch has it at a time, as long
            as that is kept, and ``apply_async`` of another one goes on with that one.
        app: The Celery app; without it that of the callbacks or members, or the current one.

    Each callback gets the summary, a dict, as its first argument; one that is immutable
    (``report.si()``) gets none.

    Attributes:
        id: Of the batch; ``Batch.load`` finds it again.

    Raises:
        TypeError: A callback is no signature, or cannot be serialized; or an argument has the
            wrong type.
        ValueError: A callback ends in a group, or the properties or the key are too large.
    """

    @classmethod
    def load(cls, batch_id: str, *, app: Any = None) -> Batch:
        """A batch that was sent, here or elsewhere; whether there is one, ``status`` tells.

        Args:
            batch_id: Its id.
            app: The Celery app; without it the current one.

        Raises:
            TypeError, ValueError: That is no id.
        """
        if not isinstance(batch_id, str) or not batch_id:
            kind = ValueError if isinstance(batch_id, str) else TypeError
            raise kind(f"Batch.load: {named(batch_id)} is no id, give batch.id")
        batch = cls(app=app)
        batch.id = batch_id
        batch._is_new = False
        return batch

    @classmethod
    def find(cls, key: str, *, app: Any = None) -> Batch | None:
        """The batch that was sent under a key of yours; ``None`` if there is none, or no more.

        Args:
            key: As it was given.
            app: The Celery app; without it the current one.

        Raises:
            TypeError, ValueError: That is no key.
            StoreAway: The store did not answer.
        """
        batch = cls(key=key, app=app)
        found = batch._ledger.of_key(key)
        return None if found is None else cls.load(found, app=batch.app)

    @property
    def app(self) -> Any:
        """The Celery app."""
        if self._app is None:
            self._app = current_app._get_current_object()
        return self._app

    # -- members -----------------------------------------------------------------------

    def add(self, *members: Any) -> None:
        """Add members: before it is sent, or from inside.

        Before ``apply_async`` they are kept, and are sent by it. Afterwards a member that runs, a
        callback of it, and what is in a batch inside of it, can add more: those are sent at once.

        Args:
            members: Signatures, groups, batches that were not sent, or iterables of them.

        Raises:
            BatchFinished: Nothing can be added any more.
            UnknownBatch: There is no such batch, or not any more.
            TypeError, ValueError: One of them is no member.
            StoreAway: The store did not answer.
        """
        if not self._is_new:
            self._send(members, inside=self._inside())
            return
        for _ in visible(members, Batch):
            pass
        self._waiting += members

    def apply_async(self, members: Any = (), *, progress: bool = False) -> Batch:
        """Send it: what was added before, and these.

        Members are registered and sent in chunks as they come, so that a generator may make any
        number of them. They begin to run meanwhile.

        Where there is a batch of the same ``key``, it becomes that one, with the callbacks that
        one has: if its producer has died it is gone on with, as by ``resume``; if it was sent
        whole, nothing is sent.

        Args:
            members: Signatures, groups, batches, or any iterable of them.
            progress: Draw a bar on the terminal, if there is one.

        Returns:
            The batch itself.

        Raises:
            BatchFinished: It was sent before; or another producer, which lives, is sending the one
                of that key.
            SettingsError: There is no store, or a setting cannot be used. Nothing was sent.
            TypeError, ValueError: One of them is no member. Of lists and tuples all are looked
                at before anything is sent, and what they have in batches that are inside.
            StoreAway, kombu.exceptions.OperationalError: The store or the broker did not answer.

        Where an error comes before the first members are registered, there is no batch, or an empty
        one (the store answered late). Where one comes later, or the end of the process, it stays in
        state ``sending``: ``resume`` goes on with it, ``cancel`` and ``drop`` end it.
        """
        if not self._is_new:
            raise sent_before(self.id, self._ledger.state(self.id))
        self._look_over([*self._waiting, members])
        waiting = Recalled(flatten(self._waiting, Batch), CHUNK)
        given = chain(waiting, flatten(members, Batch))
        size = size_of([*self._waiting, members])
        try:
            if self._app is None:
                first = list(islice(given, 1))
                self._app = app_of(first)
                given = chain(first, given)
            was = self._open(sender := new_sender())
            self._is_new = False
            if was is not None and was not in SENT_LATER:
                self._waiting.clear()
                return self
            again = was is not None
            with at_it(self._ledger, self.id, sender):
                self._send_all(given, sender, progress=progress, size=size, again=again, alone=True)
            if again:
                self._say_left()
        except BaseException:
            if self._is_new:
                self._waiting = waiting.all()
            raise
        return self

    def resume(self, members: Any = (), *, progress: bool = False) -> Batch:
        """Go on with a batch whose producer failed or died while it sent.

        Args:
            members: All of its members once more, in the same order: those that are registered
                are known by their place, task and arguments; batches inside by their place,
                callbacks, description and properties, and are gone on with themselves. Or nothing:
                it is complete then with those that it has.
            progress: Draw a bar on the terminal, if there is one.

        Returns:
            The batch itself.

        Raises:
            BatchFinished: It has been sent, or was cancelled.
            UnknownBatch: There is no such batch.
            Exception: As ``apply_async``.
        """
        self._look_over(members)
        given, sender, ledger = flatten(members, Batch), new_sender(), self._ledger
        try:
            ledger.begin_sending(self.id, sender)
        except BatchFinished as exc:
            raise sent_whole(self.id, exc) from None
        with at_it(ledger, self.id, sender):
            self._send_all(given, sender, progress=progress, size=size_of(members), again=True)
        self._say_left()
        return self

    # -- sending -----------------------------------------------------------------------

    def _say_left(self) -> None:
        with suppress(StoreAway):
            say_left(self, self._ledger.kids_sent_later(self.id))

    def _open(self, sender: str) -> State | None:
        """Open it, or become the one of its key; the state that it was in, of one that was."""
        if not self.key:
            self._create(sender)
            return None
        self.id, was = opened(
            lambda silent: self._create(sender, silent=silent),
            lambda: sent_by_another(self._ledger.of_key(self.key) or self.id, self.key),
        )
        return was

    @property
    def _ledger(self) -> BatchLedger | EagerLedger:
        return ledger_of(self.app)

    def _create(
        self,
        sender: str,
        parent: str | None = None,
        inside: str | None = None,
        adds: Adds | None = None,
        silent: float = 0.0,
        place: Place | None = None,
    ) -> Opened | None:
        """Open it, to be sent; as ``BatchLedger.create``."""
        app, settings = self.app, settings_of(self.app)
        return self._ledger.create(
            self.id,
            ttl=settings.batch_ttl,
            linger=settings.batch_linger,
            callbacks=self._made(app),
            description=self.description,
            properties=self.properties,
            parent=parent,
            inside=inside,
            sender=sender,
            adds=adds,
            silent=silent,
            place=place,
            key=self.key,
            broker=broker_of(app),
        )

    def _send_all(
        self,
        given: Iterator[Any],
        sender: str,
        *,
        size: int | None = None,
        progress: bool = False,
        again: bool = False,
        alone: bool = False,
        adds: Adds | None = None,
        of: str = "",
    ) -> None:
        ledger = self._ledger

        def send_inside(kid: Batch, what: str, number: int) -> None:
            if not kid._is_looked_over:
                self._look_inside(kid, what)
            place = Place(f"{number} {kid._like()}", sender)
            stands = again and (not kid._is_new or ledger.has_place(self.id, place.name))
            sending.begin_inside(stands)
            kid._become_part_of(self, what, place=place, again=again)

        with Bar(f"{self.description or self.key or 'batch'}: sent", wanted=progress) as bar:
            sending = Sending(
                self.app,
                ledger,
                self.id,
                sender=sender,
                again=again,
                of=of,
                on_sent=lambda sent: bar.draw(sent, size),
            )
            try:
                sending.all(given, Batch, send_inside)
            except BatchFinished:  # it was cancelled, or somebody else has gone on with it
                raise
            except BaseException as exc:
                if alone and not sending.has_begun and self._leaves_nothing(sender):
                    raise
                mend = how_to_go_on(added=adds is not None, inside=self._parent, key=self.key)
                say_it_stays(self, sending.sent, exc, mend)
                raise
            bar.draw(sending.sent, sending.sent, last=True)
        self._waiting.clear()
        self._publish(ledger.sent(self.id, sender))

    def _leaves_nothing(self, sender: str) -> bool:
        """Forget a batch that has no members yet; whether it could be, or is another one's."""
        try:
            self._ledger.drop(self.id, sender)
        except BatchFinished:
            return True
        except Exception as exc:
            logger.debug("%r is not forgotten: %s", self, describe(exc))
            return False
        self._is_new = True
        return True

    def _publish(self, dues: list[Due]) -> None:
        """Callbacks that are due already; those that cannot be sent now are left to the workers."""
        if dues:  # never where all is eager
            publish_all(self.app, dues)

    def _send(self, members: tuple[Any, ...], inside: str | None) -> None:
        self._look_over(members)
        check_is_ours(self.id)

        def send_inside(kid: Batch, what: str, number: int) -> None:
            if not kid._is_looked_over:
                self._look_inside(kid, what)
            kid._become_part_of(self, what, inside=inside)

        # The task that adds may be run again, and give the same ids.
        sending = Sending(self.app, self._ledger, self.id, inside=inside, again=True, counted=False)
        sending.all(flatten(members, Batch), Batch, send_inside)

    def _become_part_of(
        self,
        parent: Batch,
        what: str,
        *,
        inside: str | None = None,
        place: Place | None = None,
        again: bool = False,
    ) -> None:
        self._app, sender, ledger = parent.app, new_sender(), parent._ledger
        adds = None if place else who_adds(self._like())
        batch = opened(lambda silent: self._create(sender, parent.id, inside, adds, silent, place))
        self.id, self._parent = batch.id, parent.id
        self._is_new = self._is_looked_over = False
        if batch.was is not None and batch.was not in SENT_LATER:
            if not again:
                raise ValueError(f"{what} {self!r} is given twice: {ANOTHER}")
            self._waiting.clear()
            return
        given, has_begun = flatten(self._waiting, Batch), batch.was is not None
        with nullcontext() if place else at_it(ledger, self.id, sender):
            self._send_all(given, sender, again=has_begun, adds=adds, of=f"{what} {self!r}: ")

    def _inside(self) -> str | None:
        ledger = self._ledger
        return adds_as(self.id, lambda batch: ledger.status(batch).parent)

    # -- afterwards --------------------------------------------------------------------

    def status(self) -> Status:
        """How it stands; as quick with many members as with few.

        Raises:
            UnknownBatch: There is no such batch, or not any more; also before it is sent.
            StoreAway: The store did not answer.
        """
        return self._ledger.status(self.id)

    def wait(self, timeout: float | None = None, *, progress: bool = False) -> Status:
        """Wait until all of it has ended, with its callbacks.

        In a graceful task it is a safe point, as ``sleep`` is.

        Args:
            timeout: Seconds; ``None`` for as long as it takes.
            progress: Draw a bar on the terminal, if there is one.

        Returns:
            How it stands then.

        Raises:
            celery.exceptions.TimeoutError: It has not ended in time.
            UnknownBatch: There is no such batch, or it was dropped meanwhile.
            RuntimeError: A task that it waits for would wait for it.
            Interrupted: The task that waits has to stop.
            StoreAway: The store did not answer.
        """
        if timeout is not None:
            check_seconds("wait", timeout)
        if self._waits_inside():
            raise RuntimeError(f"{self!r} waits for this task, which cannot wait for it")
        title = self.description or self.key or "batch"
        return wait_until_over(self, self.status, title, timeout, progress=progress)

    def _waits_inside(self) -> bool:
        try:
            return self._inside() is not None
        except UnknownBatch:  # that of the task that waits, if anybody's: it was dropped
            return False

    def cancel(self) -> None:
        """End it: what has not started does not, and what runs is revoked.

        ``on_success`` is not sent any more, ``on_complete`` is when the last member has ended.
        So it is with the batches inside of it. Nothing, if it has ended.

        Raises:
            UnknownBatch: There is no such batch, or not any more.
            StoreAway: The store did not answer.
            kombu.exceptions.OperationalError: It is cancelled, but what runs could not be told.
        """
        ledger = self._ledger
        self._publish(ledger.cancel(self.id))
        if isinstance(ledger, BatchLedger):
            tell_workers(self.app, ledger.with_kids(self.id))

    def drop(self) -> None:
        """Forget it: its members run on, and no callback is sent any more.

        Raises:
            UnknownBatch: There is no such batch, or not any more.
            StoreAway: The store did not answer.
        """
        self._publish(self._ledger.drop(self.id))


def current_batch() -> Batch | None:
    """The batch that the running task is a member, or a callback, of; ``None`` if it is in none."""
    at = here()
    return None if at is None else Batch.load(at.batch, app=current_task.app)
