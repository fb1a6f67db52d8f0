"""The ends of one worker's members and callbacks, on their way to the ledger.

Where broker and ledger are one Redis, an end is sent by the claims, in one step with the
acknowledgement. Elsewhere it is gathered here, and sent by a thread; the answer to the broker
follows when the ledger has it. So a kill at any moment leaves a message that comes again, and a
member that ends again, which changes nothing.

A ledger that is away holds up answers for a while, and nothing else. What it has not heard by then
it is told when it is back.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from celery.utils.log import get_logger
from kombu.utils.encoding import bytes_to_str

from celery_graceful.batches.cancellations import Moment, known_of
from celery_graceful.batches.end_texts import first_text
from celery_graceful.batches.keys import INDEX, OUTBOX
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.member_part import CallbackEnd, Told, part_of
from celery_graceful.batches.model import Due, Outcome
from celery_graceful.claims.acks import Along
from celery_graceful.claims.sending import Sending
from celery_graceful.store.app_stores import find_store, settings_of
from celery_graceful.store.store import Store, StoreAway, StoreForbidden
from celery_graceful.system import native
from celery_graceful.system.log_thread import log

__all__ = ["Ends", "has_failed", "write_ends"]

logger = get_logger(__name__)

#: Ends in one step.
BATCH = 100

#: Seconds for which a ledger that is away keeps the broker from its answers.
PATIENCE = 5.0

#: Ends that are kept for a ledger that is away.
MOST = 200_000

Then = Callable[[], None]


class _Noted(NamedTuple):
    store: Store
    end: Told
    #: What follows when it is written down, in the loop.
    then: Then | None


def write_ends(
    store: Store, ends: Sequence[tuple[Told, tuple[str, int] | None]]
) -> tuple[list[Due], list[str]]:
    """Tell a ledger of ends, each with its claim if that goes with it.

    Args:
        store: Where the ledger is, and the claims.
        ends: The ends; worker and number of the claim.

    Returns:
        Callbacks that have become due; batches of members that are not cancelled.

    Raises:
        StoreAway: Some of it may have been done; it can be asked for again, all of it.
    """
    ledger = BatchLedger(store)
    members = [end for end, _ in ends if not isinstance(end, CallbackEnd)]
    claims = [claim for end, claim in ends if not isinstance(end, CallbackEnd)]
    due, going = ledger.end_and_look(members, claims)
    if len(members) < len(ends):
        for end, claim in ends:
            if isinstance(end, CallbackEnd):
                due += ledger.callback_ended(end.batch, end.name, claim, kept=end.kept)
    return due, going


def has_failed(app: Any, headers: Mapping[str, Any]) -> list[Due]:
    """A message is kept in quarantine: what it is to a batch has failed.

    Args:
        app: The Celery app.
        headers: Of the message.

    Returns:
        Callbacks that have become due.

    Raises:
        StoreAway: As ``write_ends``.
    """
    part = part_of(headers)
    store = None if part is None else find_store(app)
    if part is None or store is None:
        return []
    end = part.end(Outcome.FAILED)
    if isinstance(end, CallbackEnd):
        end = end._replace(kept=True)
    due, _ = write_ends(store, [(end, None)])
    return due


class Ends:
    """Of one worker. To be called from any thread, but for what is said to be of the loop.

    Args:
        app: The Celery app.
        ring_loop: Makes the loop call ``on_loop``.
        on_due: Told of callbacks that have become due, and where.
    """

    def __init__(
        self, app: Any, ring_loop: Callable[[], None], on_due: Callable[[Store, list[Due]], None]
    ) -> None:
        self.app = app
        self.ring_loop, self.on_due = ring_loop, on_due
        #: Broker and ledger are one Redis, where there are claims.
        self.with_claims = settings_of(app).store is None
        self._lock = native.Lock()
        self._sending = Sending(
            self._lock, self._send, self._has_more, name="graceful-ends", what="note ends"
        )
        self._noted: deque[_Noted] = deque()
        #: How many of them are being sent.
        self._under_way = 0
        self._answers: deque[Then] = deque()
        self._away_since: float | None = None
        self._said_none = False

    # -- what it is told -------------------------------------------------------------

    def note(self, end: Told, store: Store | None = None, then: Then | None = None) -> None:
        """Something has ended.

        Args:
            end: What the ledger is told.
            store: Where the ledger is, if that is known.
            then: Called in the loop when the ledger has it, or would take too long.
        """
        store = store or find_store(self.app)
        if store is None:
            self._say_none()
        with self._lock:
            at_once = then is not None and (store is None or self._is_away_for_long())
            if at_once and then is not None:
                self._answers.append(then)
            if store is not None:
                self._noted.append(_Noted(store, end, None if at_once else then))
            asleep = store is not None and self._sending.awaken()
        if asleep:
            self._sending.wake()
        if at_once:
            self.ring_loop()

    def write(self, store: Store, ends: Sequence[tuple[Told, tuple[str, int] | None]]) -> None:
        """Tell the ledger now, with claims; who asks waits.

        Raises:
            StoreAway: As ``write_ends``.
        """
        asked = Moment.now()
        self._hear(store, write_ends(store, ends), asked)

    def along(
        self, store: Store, ends: Sequence[Told], workers: Sequence[str], numbers: Sequence[int]
    ) -> Along:
        """As ``write``, for a script that does more: the first of them, but no callbacks."""
        asked = Moment.now()
        text, count = first_text(ends, workers, numbers)
        if not text.isascii():  # that connection may not say it as the ledger's does
            count = 0

        def heard(answer: Any) -> None:
            due, going = ([bytes_to_str(text) for text in texts] for texts in answer)
            self._hear(store, (Due.parse_all(due), going), asked)

        return Along((INDEX, OUTBOX), (store.prefix, text), count, heard)

    def _hear(self, store: Store, answer: tuple[list[Due], list[str]], asked: Moment) -> None:
        due, going = answer
        if going:
            known_of(self.app).not_cancelled(going, asked)
        if due:
            self.on_due(store, due)

    def write_failed(self, headers: Mapping[str, Any]) -> None:
        """A message is not run any more; who says so waits, or ``note_failed``.

        Args:
            headers: Of the message.

        Raises:
            StoreAway: As ``write_ends``.
        """
        due = has_failed(self.app, headers)
        store = find_store(self.app)
        if due and store is not None:
            self.on_due(store, due)

    def note_failed(self, headers: Mapping[str, Any]) -> None:
        """As ``write_failed``, soon."""
        part = part_of(headers)
        if part is not None:
            self.note(part.end(Outcome.FAILED))

    # -- a stop ------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a drain has to wait: for the ledger, or for what has to follow in the loop."""
        with self._lock:  # else what is just being taken to be sent is in neither
            return bool(self._noted or self._under_way or self._answers)

    def flush(self, seconds: float) -> bool:
        """Wait until the ledger has all ends, for up to ``seconds``; whether it has."""
        with self._lock:
            if not self._has_more():
                return True
            self._sending.hurry()
        self._sending.wait(seconds)
        with self._lock:
            return not self._has_more()

    def end(self, seconds: float) -> None:
        """The worker ends: send what there is, in up to ``seconds``; say what is left."""
        if not self.flush(seconds):
            left = len(self._noted) + self._under_way
            log(
                logger,
                logging.ERROR,
                "The store has not heard that %d members of batches have ended: they are found "
                "missing there, and repaired",
                left,
            )
        self._sending.end(seconds)

    def wait_no_more(self) -> None:
        """The connection of the worker is about to end: answer the broker now. In the loop."""
        self._answer_all()
        self.on_loop()

    # -- in the loop -------------------------------------------------------------------

    def on_loop(self) -> None:
        """Answer the broker what the ledger knows."""
        while self._answers:
            self._answers.popleft()()

    # -- in the thread -----------------------------------------------------------------

    def _has_more(self) -> bool:
        return bool(self._noted or self._under_way)

    def _send(self, at_once: bool) -> None:
        while self._noted:
            with self._lock:
                store = self._noted[0].store
                batch: list[_Noted] = []
                while self._noted and self._noted[0].store is store and len(batch) < BATCH:
                    batch.append(self._noted.popleft())
                self._under_way = len(batch)
            sent = False
            try:
                sent = self._try(store, batch)
                self._answer(batch)  # first: a drain waits for these, or for those
            finally:
                with self._lock:
                    if not sent:
                        self._noted.extendleft(self._kept(batch)[::-1])
                    self._under_way = 0

    def _try(self, store: Store, batch: list[_Noted]) -> bool:
        try:
            self.write(store, [(noted.end, None) for noted in batch])
        except StoreForbidden:
            pass  # said there; waiting changes nothing
        except StoreAway:
            self._away_since = self._away_since or time.monotonic()
            if self._is_away_for_long():
                self._answer_all()
            raise
        self._away_since = None
        return True

    def _kept(self, batch: list[_Noted]) -> list[_Noted]:
        """Those that are sent again. If they have been waited for, nobody waits any more."""
        room = max(0, MOST - len(self._noted))
        if room < len(batch):
            log(logger, logging.CRITICAL, "Ends of %d members are dropped", len(batch) - room)
        kept = batch[:room]
        if self._is_away_for_long():
            self._answers.extend(noted.then for noted in batch if noted.then is not None)
            return [noted._replace(then=None) for noted in kept]
        return kept

    def _is_away_for_long(self) -> bool:
        since = self._away_since
        return since is not None and time.monotonic() >= since + PATIENCE

    def _answer_all(self) -> None:
        with self._lock:
            self._answers.extend(noted.then for noted in self._noted if noted.then is not None)
            self._noted = deque(noted._replace(then=None) for noted in self._noted)
        self.ring_loop()

    def _answer(self, batch: list[_Noted]) -> None:
        thens = [noted.then for noted in batch if noted.then is not None]
        self._answers.extend(thens)
        if thens:
            self.ring_loop()

    def _say_none(self) -> None:
        if not self._said_none:
            self._said_none = True
            log(
                logger,
                logging.ERROR,
                "There is no Redis that this worker knows of (graceful_store), and it gets members "
                "of batches: nobody is told that they have ended",
            )
