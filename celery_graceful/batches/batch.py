"""``Batch``: the user's side."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from itertools import chain, islice
from typing import Any
from uuid import uuid4

from celery import current_app, current_task
from celery.exceptions import TimeoutError
from celery.utils.log import get_logger

from celery_graceful.batches import callbacks
from celery_graceful.batches.adding import as_what, at_it, check_is_ours, new_sender, opened
from celery_graceful.batches.callback_publishing import publish_all
from celery_graceful.batches.current_member import adds_as, here
from celery_graceful.batches.eager import EagerLedger, eager_ledger
from celery_graceful.batches.ledger import CHUNK, BatchLedger
from celery_graceful.batches.model import CALLBACKS, Adds, Due
from celery_graceful.batches.progress import Bar
from celery_graceful.batches.properties import checked
from celery_graceful.batches.sending import Sending
from celery_graceful.batches.signatures import Recalled, flatten, look_at, named, size_of
from celery_graceful.batches.status import Status
from celery_graceful.batches.whereabouts import broker_of
from celery_graceful.exceptions import BatchFinished, Interrupted, SettingsError, UnknownBatch
from celery_graceful.runs.interrupt import sleep
from celery_graceful.store.app_stores import find_store, settings_of
from celery_graceful.system.arguments import check_seconds
from celery_graceful.system.describe import describe

__all__ = ["Batch", "current_batch"]

logger = get_logger(__name__)

#: Seconds between two looks of ``wait``: the first ones, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0

#: What becomes of one of which a part was sent.
_RESUME = "Go on with Batch.load(id).resume(members)"
_RUN_AGAIN = "This task goes on with it if it is run again, and adds one like it; resume it by hand"

#: Batches that workers are told of at once.
TOLD = 500


class Batch:
    """Tasks that are sent together, and callbacks that are sent once when they have ended.

    Nothing is sent, or written anywhere, before ``apply_async``.

    Args:
        on_success: Signature that is sent when all members have succeeded, also where some had
            failed before and were run again.
        on_complete: Signature that is sent when each member has ended, however it has.
        on_failure: Signature that is sent once, when the first member has failed for good.
        description: For people, such as ``"invoices of May"``.
        properties: A small dict of yours, of what JSON can say.
        app: The Celery app; without it that of the callbacks or members, or the current one.

    Each callback gets the summary, a dict, as its first argument; one that is immutable
    (``report.si()``) gets none.

    Attributes:
        id: Of the batch; ``Batch.load`` finds it again.

    Raises:
        TypeError: A callback is no signature, or cannot be serialized; or an argument has the
            wrong type.
        ValueError: A callback ends in a group, or the properties are too large.
    """

    def __init__(
        self,
        *,
        on_success: Any = None,
        on_complete: Any = None,
        on_failure: Any = None,
        description: str = "",
        properties: Mapping[str, Any] | None = None,
        app: Any = None,
    ) -> None:
        given = zip(CALLBACKS, (on_success, on_complete, on_failure), strict=True)
        self._callbacks = {n: callbacks.check(n, sig) for n, sig in given if sig is not None}
        if not isinstance(description, str):
            raise TypeError(f"description: {named(description)} is no text")
        self.id = str(uuid4())
        self.description = description
        self.properties = checked(properties)
        self._app = app or next((sig.app for sig in self._callbacks.values()), None)
        self._waiting: list[Any] = []
        self._is_new = True

    def __repr__(self) -> str:
        return f"<Batch {self.id}{self.description and f' ({self.description})'}>"

    @classmethod
    def load(cls, batch_id: str, *, app: Any = None) -> Batch:
        """A batch that was sent, here or elsewhere; whether there is one, ``status`` tells.

        Args:
            batch_id: Its id.
            app: The Celery app; without it the current one.

        Raises:
            TypeError: That is no id.
        """
        if not isinstance(batch_id, str):
            raise TypeError(f"Batch.load: {named(batch_id)} is no id, give batch.id")
        batch = cls(app=app)
        batch.id = batch_id
        batch._is_new = False
        return batch

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
        look_at(members, Batch)
        self._waiting += members

    def apply_async(self, members: Any = (), *, progress: bool = False) -> Batch:
        """Send it: what was added before, and these.

        Members are registered and sent in chunks as they come, so that a generator may make any
        number of them. They begin to run meanwhile.

        Args:
            members: Signatures, groups, batches, or any iterable of them.
            progress: Draw a bar on the terminal, if there is one.

        Returns:
            The batch itself.

        Raises:
            BatchFinished: It was sent before.
            SettingsError: There is no store, or a setting cannot be used. Nothing was sent.
            TypeError, ValueError: One of them is no member. Of lists and tuples all are looked
                at before anything is sent.
            StoreAway, kombu.exceptions.OperationalError: The store or the broker did not answer.

        Where an error comes before the first chunk is sent, there is no batch. Where one, or the
        end of the process, comes later, it stays in state ``sending``: ``resume`` goes on with it,
        ``cancel`` and ``drop`` end it.
        """
        if not self._is_new:
            raise BatchFinished(self.id, "sent")
        look_at(members, Batch)
        waiting = Recalled(flatten(self._waiting, Batch), CHUNK)
        given = chain(waiting, flatten(members, Batch))
        size = size_of([*self._waiting, members])
        try:
            if self._app is None:
                first = list(islice(given, 1))
                self._app = first[0].app if first else None
                given = chain(first, given)
            self._create(sender := new_sender())
            self._is_new = False
            self._send_all(given, sender, progress=progress, size=size, alone=True)
        except BaseException:
            if self._is_new:
                self._waiting = waiting.all()
            raise
        return self

    def resume(self, members: Any = (), *, progress: bool = False) -> Batch:
        """Go on with a batch whose producer failed or died while it sent.

        Args:
            members: All of its members once more, in the same order: those that are registered
                are known by their place, task and arguments. Or nothing: it is complete then
                with those that it has.
            progress: Draw a bar on the terminal, if there is one.

        Returns:
            The batch itself.

        Raises:
            BatchFinished: It has been sent, or was cancelled.
            UnknownBatch: There is no such batch.
            Exception: As ``apply_async``.
        """
        given, sender = flatten(members, Batch), new_sender()
        self._ledger.begin_sending(self.id, sender)
        self._send_all(given, sender, progress=progress, size=size_of(members), again=True)
        return self

    # -- sending -----------------------------------------------------------------------

    @property
    def _ledger(self) -> BatchLedger | EagerLedger:
        app = self.app
        if app.conf.task_always_eager:
            return eager_ledger(app)
        if app.conf.task_protocol == 1:
            mend = "leave it out: batches are known by headers, which protocol 1 has not"
            raise SettingsError("task_protocol", 1, mend)
        store = find_store(app)
        if store is None:
            which = f"if {app.main or 'the current one'} is not the app that you mean"
            mend = (
                "batches are kept in Redis: give the URL of one, as redis://localhost/2; or app=, "
                f"{which}"
            )
            raise SettingsError("graceful_store", None, mend)
        return BatchLedger(store)

    def _create(
        self,
        sender: str,
        parent: str | None = None,
        inside: str | None = None,
        adds: Adds | None = None,
        silent: float = 0.0,
    ) -> str | None:
        """Open it, to be sent; as ``BatchLedger.create``."""
        app, settings = self.app, settings_of(self.app)
        return self._ledger.create(
            self.id,
            ttl=settings.batch_ttl,
            linger=settings.batch_linger,
            callbacks={
                name: callbacks.made(app, self.id, name, sig.clone())
                for name, sig in self._callbacks.items()
            },
            description=self.description,
            properties=self.properties,
            parent=parent,
            inside=inside,
            sender=sender,
            adds=adds,
            silent=silent,
            broker=broker_of(app),
        )

    def _send_all(
        self,
        given: Iterator[Any],
        sender: str,
        *,
        size: int | None,
        progress: bool,
        again: bool = False,
        alone: bool = False,
        adds: Adds | None = None,
    ) -> None:
        ledger = self._ledger
        nested = self._refuse_nested if again and not adds else self._send_nested
        with Bar(f"{self.description or 'batch'}: sent", wanted=progress) as bar:
            sending = Sending(
                self.app,
                ledger,
                self.id,
                sender=sender,
                again=again,
                on_sent=lambda sent: bar.draw(sent, size),
            )
            try:
                sending.all(given, Batch, nested)
            except BatchFinished:  # it was cancelled, or somebody else has gone on with it
                raise
            except BaseException as exc:
                if alone and not sending.has_begun and self._is_undone():
                    raise
                level = logging.INFO if isinstance(exc, Interrupted) else logging.ERROR
                logger.log(
                    level,
                    "Batch %s stays in state sending, with %d members sent: %s. %s, or end it with "
                    "cancel() or drop()",
                    self.id,
                    sending.sent,
                    describe(exc) if isinstance(exc, Exception) else type(exc).__name__,
                    _RUN_AGAIN if adds else _RESUME,
                )
                raise
            bar.draw(sending.sent, sending.sent, last=True)
        self._waiting.clear()
        self._publish(ledger.sent(self.id, sender))

    def _is_undone(self) -> bool:
        """Forget a batch that has no members yet; whether it could be."""
        try:
            self._ledger.drop(self.id)
        except Exception as exc:
            logger.debug("%r is not forgotten: %s", self, describe(exc))
            return False
        self._is_new = True
        return True

    def _publish(self, dues: list[Due]) -> None:
        """Callbacks that are due already; those that cannot be sent now are left to the workers."""
        if dues:  # never where all is eager
            publish_all(self.app, dues)

    def _send_nested(self, batch: Batch, inside: str | None = None) -> None:
        if not batch._is_new:
            raise ValueError(f"{batch!r} was sent already, it cannot become part of another batch")
        batch._become_part_of(self, inside)

    def _become_part_of(self, parent: Batch, inside: str | None) -> None:
        self._app = parent.app
        given, sender, ledger = flatten(self._waiting, Batch), new_sender(), self._ledger
        adds = as_what(self._callbacks, self.description, self.properties)
        found = opened(lambda silent: self._create(sender, parent.id, inside, adds, silent))
        again, self.id, self._is_new = found != self.id, found, False
        with at_it(ledger, self.id, sender) if adds else nullcontext():
            self._send_all(given, sender, size=None, progress=False, again=again, adds=adds)

    def _refuse_nested(self, batch: Batch) -> None:
        raise ValueError(
            f"{batch!r} cannot be given again: one that was inside is known by its id, and is gone "
            "on with by its own resume(); leave it out"
        )

    def _send(self, members: tuple[Any, ...], inside: str | None) -> None:
        look_at(members, Batch)
        check_is_ours(self.id)
        # The task that adds may be run again, and give the same ids.
        sending = Sending(self.app, self._ledger, self.id, inside=inside, again=True, counted=False)
        sending.all(flatten(members, Batch), Batch, lambda kid: self._send_nested(kid, inside))

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
        end = None if timeout is None else time.monotonic() + timeout
        pause = FIRST_PAUSE
        with Bar(self.description or "batch", wanted=progress) as bar:
            while True:
                status = self.status()
                ended = status.total - status.pending
                more = f"  {status.failed} failed" if status.failed else ""
                over = status.finished is not None
                bar.draw(ended, status.total, more, last=over)
                if over:
                    return status
                left = LONGEST_PAUSE if end is None else end - time.monotonic()
                if left <= 0:
                    raise TimeoutError(
                        f"{self!r} has not ended in {timeout:g} s: {status.pending} of "
                        f"{status.total} members are pending, {status.missing} are missing; it is "
                        f"{status.state.value}"
                    )
                sleep(min(pause, left))
                pause = min(pause * 1.5, LONGEST_PAUSE)

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
            cancelled = list(ledger.with_kids(self.id))
            for start in range(0, len(cancelled), TOLD):
                told = {"batches": cancelled[start : start + TOLD]}
                self.app.control.broadcast("cancel_batches", arguments=told)

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
