"""The caretaker of batches that stand still: each worker has one, and one of them works at a time.

Where there is no batch, or none stands still, a worker asks for one command in a while. Keys, after
the prefix of the store; ``<broker>`` is where the messages of the app are: some may share a store.

``graceful:batches:look:<broker>``
    Who looks now; kept until it is time for the next look.
``graceful:batches:looked``
    Sorted set: batch -> before when it need not be looked at again, seconds of the server's clock.
    It expires when nobody looks any more. With what is missing of tasks that some do not know, a
    space and the digest of those that they know follow the batch: others look at it meanwhile.
``graceful:batches:look:<broker>:<digest>``
    Of those who know these tasks somebody has looked, and left something to others, who may look
    before it is time for the next look here.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.batches.adding import SILENT
from celery_graceful.batches.brief_status import Standing, standing_of
from celery_graceful.batches.findings import Missing, note
from celery_graceful.batches.keys import INDEX, key_of
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.looks import PAUSE, STILL, between_looks, patience
from celery_graceful.batches.missing import MOST, Scan
from celery_graceful.batches.model import State
from celery_graceful.batches.producers import is_left
from celery_graceful.batches.repair import Repair, Repaired, strange_of
from celery_graceful.batches.routes import Routes
from celery_graceful.batches.sent_in_part import say_unsent
from celery_graceful.batches.whereabouts import broker_of, whereabouts_of
from celery_graceful.exceptions import UnknownBatch
from celery_graceful.history.entry import What, entries_of
from celery_graceful.history.journal import record
from celery_graceful.settings import Settings
from celery_graceful.system.log_thread import log

__all__ = ["Caretaker"]

logger = get_logger(__name__)

LOOKED = "graceful:batches:looked"

#: Seconds for which who looks keeps the others away, until it says again that it does; and for
#: which what was found is known, unless it is found again.
AT_WORK, KNOWN = 6.0, 600.0

#: How much longer than it was busy a worker leaves the servers alone.
SELDOM = 20.0

#: Seconds for which a batch is left alone that was repaired often, and stands still again.
LONGEST = 3600.0


class Caretaker:
    """Looks after the batches of one app, on behalf of one worker.

    Args:
        app: The Celery app.
        settings: What the user set.
        repair: Makes repairs.
        is_fenced: Whether a task of that name is one whose runs are fenced.
        over: Set when the worker ends.
        tell: Tells others of a repair: the batch, and what was done.
        tell_cancelled: Tells workers once more that batches were cancelled.
    """

    def __init__(
        self,
        app: Any,
        settings: Settings,
        repair: Repair,
        is_fenced: Callable[[str], bool],
        over: threading.Event,
        tell: Callable[[str, Repaired], None] = lambda batch, done: None,
        tell_cancelled: Callable[[list[str]], None] = lambda batches: None,
    ) -> None:
        self.app, self.settings, self.repair = app, settings, repair
        self.ledger: BatchLedger = repair.ledger
        self.store = self.ledger.store
        self._is_fenced, self._tell, self._tell_cancelled = is_fenced, tell, tell_cancelled
        self.broker = broker_of(app)
        self._name = secrets.token_hex(8)
        #: Digest of the tasks that are known here; whether something was left to who knows others.
        self._tasks, self._leaves = "", False
        self._lock_at = self._idle = 0.0
        #: There was no batch: until then none can have stood still.
        self._none_until = 0.0
        self._over = over
        #: Brokers whose batches are looked after elsewhere.
        self._elsewhere: set[str] = set()
        #: What was said of a batch last.
        self._said: dict[str, int] = {}
        #: Of which it was said that nobody sends the rest.
        self._left: set[str] = set()
        #: Of which somebody has said that their producer is dead, and when they moved last.
        self._unsent: dict[str, float] = {}
        self._scan: Scan | None = None

    # -- a look ------------------------------------------------------------------------

    def look(self) -> None:
        """Look at what stands still, unless somebody else does.

        Raises:
            StoreAway: The store, or the broker's Redis, does not answer.
            Exception: What the broker's client raised.
        """
        after = patience(self.settings)
        if time.monotonic() < self._none_until:
            return
        age = after * PAUSE
        if not self.store.any_exists(INDEX, age=age):
            self._none_until = time.monotonic() + after * STILL - age
            return
        still = self.ledger.stood_still(after * STILL)
        if not still:
            return
        self._tasks = hashlib.sha256(" ".join(sorted(self.app.tasks)).encode()).hexdigest()[:16]
        if not self._lock():
            return
        self._said = {batch: self._said[batch] for batch in self._said.keys() & still}
        self._unsent = {batch: self._unsent[batch] for batch in self._unsent.keys() & still}
        self._left.intersection_update(still)
        began, self._idle, self._leaves = time.monotonic(), 0.0, False
        try:
            for batches in self._portions(self._due(still)):
                if not self._look_at(batches):
                    return
        finally:
            busy = time.monotonic() - began - self._idle
            self._rest_from_looks(max(after * PAUSE * 0.8, busy * SELDOM))

    def _look_at(self, batches: Sequence[str]) -> bool:
        """Look at some; whether to go on."""
        for batch in batches:
            try:
                self.repair.publish(self.ledger.look(batch))
                self._end_left(batch)
            except UnknownBatch:
                pass  # it has ended meanwhile, and was forgotten
        cancelled = [batch for batch in batches if self.ledger.is_cancelled(batch)]
        if cancelled:  # who was away when they were, or could not be told, goes on with them
            self._tell_cancelled(cancelled)
        found = self._scanner().look(batches)
        now = self.ledger.now()
        for batch, missing in found.items():
            if self._over.is_set() or not self._keep_lock(AT_WORK):
                return False
            self._note(batch, missing)
            pause, looked = patience(self.settings) * STILL, batch
            if missing:
                members = [one.member for one in missing]
                strange = strange_of(self.app, self.ledger, batch, members)
                pause = self._mend(batch, missing, strange, pause)
                if strange:
                    looked, self._leaves = self._left_to_others(batch), True
            self.store.execute("ZADD", [LOOKED], [now + pause, looked])
        self.store.execute("ZREMRANGEBYSCORE", [LOOKED], ["-inf", now - LONGEST])
        # No pause is longer than that: after the last worker it is gone some time.
        seconds = max(LONGEST, patience(self.settings) * STILL)
        self.store.execute("PEXPIRE", [LOOKED], [int(seconds * 1000)])
        return bool(found)

    def _end_left(self, batch: str) -> None:
        """Cancel what nobody sends the rest of: what it is inside of would wait for ever."""
        if not self.ledger.is_left(batch, SILENT):
            return
        may = self.settings.batch_repair != "off"
        if may or batch not in self._left:
            log(
                logger,
                logging.WARNING,
                "Batch %s: nobody sends the rest of it, since the task that was adding it has "
                "ended, or what it is inside of was sent without: %s",
                batch,
                "it is cancelled" if may else "nothing done. Resume, cancel or drop it",
            )
        self._left.add(batch)
        if may:
            self.repair.publish(self.ledger.cancel(batch))

    def _say_unsent(self, batch: str, stands: Standing, now: float) -> None:
        """Say once, of all workers, that the producer of a batch is dead."""
        if not is_left(stands.state, stands.kind, stands.parent, stands.heard, now):
            return
        if self._unsent.get(batch) == stands.moved:
            return
        self._unsent[batch] = stands.moved
        with suppress(UnknownBatch):  # it was dropped meanwhile
            if self.ledger.may_say_left(batch):
                log(logger, logging.WARNING, "%s", say_unsent(self.ledger.status(batch), now))

    def _left_to_others(self, batch: str) -> str:
        """How a batch is called that workers which know the same tasks need not look at."""
        return f"{batch} {self._tasks}"

    def _mend(
        self, batch: str, missing: Sequence[Missing], strange: set[str], pause: float
    ) -> float:
        """Repair, or say that it is to be repaired; seconds until it is looked at again."""
        now, how = standing_of(self.ledger, batch), self.settings.batch_repair
        sure = [one for one in missing if one.sure]
        # What a producer has registered, and not sent yet, may still be sent.
        if now is None or now.state is State.SENDING or how == "off" or not sure:
            self._say(batch, missing, None, time.time())
            return pause
        may_resend = self._is_fenced if how is None else lambda name: True
        found_at = time.time()  # before what is done about it
        done = self.repair.mend(batch, now, sure, may_resend, fail=how == "fail", strange=strange)
        self._say(batch, missing, done, found_at)
        if not done:
            return pause
        dealt_with = done.dealt_with()
        self._note(batch, [one for one in missing if one.member not in dealt_with])
        self._tell(batch, done)
        times = int(self.store.run("batch_repaired", [key_of(batch)], []))
        return float(min(LONGEST, pause * 2 ** min(times - 1, 20)))

    def _note(self, batch: str, missing: Sequence[Missing]) -> None:
        seconds = max(KNOWN, 10 * self.settings.batch_missing_after)
        note(self.ledger, batch, missing, seconds)

    def _say(
        self, batch: str, missing: Sequence[Missing], done: Repaired | None, found_at: float
    ) -> None:
        if not done and self._said.get(batch) == len(missing):
            return
        self._said[batch] = len(missing)
        why, members = f"{missing[0].why}, of batch {batch}", [(one.member, "") for one in missing]
        worker = self.repair.worker
        entries = entries_of(What.MISSING, members, worker=worker, reason=why, at=found_at)
        record(self.store, self.settings, *entries)
        log(
            logger,
            logging.WARNING,
            "Batch %s: %d missing (%s%s): %s. See celery graceful batches show %s",
            batch,
            len(missing),
            missing[0].why,
            "" if missing[0].sure else ", unsure",
            "nothing done" if done is None else done,
            batch,
        )

    # -- which batches -----------------------------------------------------------------

    def _due(self, still: Sequence[str]) -> Iterator[str]:
        now = self.ledger.now()
        looked = set(self.store.execute("ZRANGEBYSCORE", [LOOKED], [f"({now}", "+inf"]))
        for batch in still:
            if batch in looked:
                continue
            if self._left_to_others(batch) in looked:
                self._leaves = True
            else:
                stands = standing_of(self.ledger, batch)
                if stands is None or stands.state is State.OPEN:
                    continue
                if stands.broker in ("", self.broker):
                    self._say_unsent(batch, stands, now)
                    yield batch
                else:
                    self._say_elsewhere(stands.broker)

    def _say_elsewhere(self, broker: str) -> None:
        if broker not in self._elsewhere:
            self._elsewhere.add(broker)
            log(
                logger,
                logging.WARNING,
                "Batches of another broker are in this store (%s): workers of that one look after "
                "them. If it is this one, by another name: give the same URL to all",
                self.store.source,
            )

    def _portions(self, batches: Iterator[str]) -> Iterator[list[str]]:
        portion, members = [], 0
        for batch in batches:
            portion.append(batch)
            members += int(self.store.execute("SCARD", [key_of(batch, "pending")]))
            if members >= MOST or len(portion) >= 500:
                yield portion
                portion, members = [], 0
        if portion:
            yield portion

    # -- one at a time -----------------------------------------------------------------

    def _key(self) -> list[str]:
        return [f"graceful:batches:look:{self.broker}"]

    def _rest_key(self) -> list[str]:
        return [f"graceful:batches:look:{self.broker}:{self._tasks}"]

    def _lock(self) -> bool:
        if self.store.execute("EXISTS", self._rest_key()):
            return False
        args = [self._name, "NX", "PX", int(AT_WORK * 1000)]
        self._lock_at = time.monotonic()
        return bool(self.store.execute("SET", self._key(), args))

    def _keep_lock(self, seconds: float) -> bool:
        """For so long from now on; False: it is somebody else's."""
        if self.store.execute("GET", self._key(), insist=True) != self._name:
            return False
        self._lock_at = time.monotonic()
        return bool(self.store.execute("PEXPIRE", self._key(), [int(seconds * 1000)], insist=True))

    def _rest_from_looks(self, seconds: float) -> None:
        """Keep all from looking; where something is left to others only those who leave it."""
        if self._leaves and self._keep_lock(AT_WORK):
            args = [self._name, "PX", int(seconds * 1000)]
            self.store.execute("SET", self._rest_key(), args, insist=True)
            self.store.execute("UNLINK", self._key(), insist=True)
        else:
            self._keep_lock(seconds)

    def _rest(self, seconds: float) -> None:
        if time.monotonic() - self._lock_at > AT_WORK / 3:
            self._keep_lock(AT_WORK)
        self._idle += seconds
        time.sleep(seconds)

    def _wait(self, seconds: float) -> bool:
        self._keep_lock(seconds + AT_WORK)
        self._idle += seconds
        return not self._over.wait(seconds)

    def _scanner(self) -> Scan:
        if self._scan is None:
            routes = Routes(self.app, self.ledger)
            where = whereabouts_of(self.app, self._rest, routes.of)
            self._scan = Scan(self.ledger, where, self._wait, between_looks(self.settings))
        return self._scan
