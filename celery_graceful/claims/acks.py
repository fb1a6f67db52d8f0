"""Acknowledgements of claims: gathered, and sent together.

Along with the next claim, or, where none comes, some 5 ms later from a thread of its own, over a
connection of its own. So an acknowledgement depends neither on the connection that its message came
over nor on the event loop, and is lost with neither.

What has to be written down with an acknowledgement, the end of a member of a batch, goes with it in
one step: somebody above knows how. Most often the connection that fetches takes those steps along,
behind a claim, while what that one has brought is handed to the pool, or between claims, while the
pool has enough to do: waking a thread for them costs more than all else about an end, and a loop
that waits for Redis does as well.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from celery.utils.log import get_logger

from celery_graceful.claims.claimant import claims_key
from celery_graceful.store.store import Store, StoreForbidden
from celery_graceful.system.log_thread import log

__all__ = ["Acks", "Along", "EndsAlong", "WriteEnds"]

logger = get_logger(__name__)

#: Acknowledgements in one command; ends in one step.
BATCH, ENDS = 500, 200

#: Seconds after which who fetches takes ends along, or of how many, while the pool has enough to
#: do; and at a worse moment, if there is never a better one.
RIPE, RIPE_ENDS = 0.02, 180
LATE, LATE_ENDS = 0.025, 240

#: When the thread writes them down: when none has come for so many seconds, the first one has
#: waited for so long, or there are so many.
QUIET, GATHER_ENDS, MANY_ENDS = 0.01, 0.03, 300

#: Seconds for which nobody takes ends along when that has failed: the thread says why, and what
#: then.
NOT_ALONG = 10.0

#: Acknowledgements that are remembered: a failover to a replica that lags undoes the last ones.
LATELY = 10_000

#: Writes down what goes with claims, told by worker and number, and deletes them, in one step.
WriteEnds = Callable[[Store, Sequence["_End"]], None]


class Along(NamedTuple):
    """Ends, as the connection that fetches takes them along.

    Attributes:
        keys: Of their script, without the key prefix.
        arguments: Of it.
        many: How many of the ends these are, the first ones.
        heard: Told what it answered, when they are written down.
    """

    keys: Sequence[str]
    arguments: Sequence[Any]
    many: int
    heard: Callable[[Any], None]


#: Says how that connection takes ends along.
EndsAlong = Callable[[Store, Sequence[Any], Sequence[str], Sequence[int]], Along]

#: What is written down, and the worker and the number of the claim that it goes with.
_End = tuple[Any, tuple[str, int]]


class Acks:
    """Of what was claimed on one server, under all identities of a worker.

    Claims are told apart by their worker and number.

    Args:
        store: Where the claims are.
        lock: Of the book that these are part of.
        on_sent: Told, under the lock, of a worker's numbers that are claims no more.
        write_ends: For acknowledgements that something goes with.
        ends_along: The same, for who fetches and takes them along; without, nobody does.
    """

    def __init__(
        self,
        store: Store,
        lock: Any,
        on_sent: Callable[[str, Iterable[int]], None],
        write_ends: WriteEnds,
        ends_along: EndsAlong | None = None,
    ) -> None:
        self.store = store
        self._lock = lock
        self._on_sent, self._write_ends, self._ends_along = on_sent, write_ends, ends_along
        #: What is written down in the step that acknowledges a claim; until it is a claim no more,
        #: and then for as long as that is remembered.
        self.along: dict[str, Any] = {}
        #: What is to be written down, and of each the worker and the number of its claim. Not as
        #: tuples: garbage collection takes long over many that are kept for a while.
        self._ends: tuple[list[Any], list[Any], list[Any]] = [], [], []
        #: Since when the first of them waits, and the last, on the monotonic clock.
        self._ends_since = self._end_came = 0.0
        #: Those that were taken along; the thread writes the first ones of the others down.
        self._riding: tuple[list[Any], list[Any], list[Any]] = [], [], []
        self._is_writing = False
        self._along_from = 0.0
        self._done: dict[str, list[int]] = {}
        #: Of those, what a claim has taken along; and what the thread is just sending.
        self._under_way: dict[str, list[int]] = {}
        self._going: dict[str, list[int]] = {}
        self._lately: deque[str] = deque(maxlen=LATELY)
        #: What was written down with each of them.
        self._lately_along: deque[Any] = deque(maxlen=LATELY)
        #: Of which worker a claim has taken some along since the thread looked last: another soon
        #: will, but never of an identity that was lost.
        self._took: str | None = None

    # -- under the lock --------------------------------------------------------------

    def add(self, worker: str, number: int, tag: str = "", now: float = 0.0) -> None:
        """Acknowledge it soon.

        Args:
            worker: Whose claim it is.
            number: Its own.
            tag: Its tag, for who has it.
            now: On the monotonic clock, for who has that.
        """
        end = self.along.get(tag or f"{worker}/{number}") if self.along else None
        if end is None:
            self._done.setdefault(worker, []).append(number)
        else:
            self._end_came = now = now or time.monotonic()
            ends, workers, numbers = self._ends
            if not ends:
                self._ends_since = now
            ends.append(end)
            workers.append(worker)
            numbers.append(number)

    @property
    def has_ends(self) -> bool:
        """Whether something is still to be written down."""
        return bool(self.along)

    def has_more(self) -> bool:
        """Whether some are still to be sent by the thread."""
        return bool(self._ends[0]) or self.has_plain()

    def has_plain(self) -> bool:
        """Whether some are still to be sent by the thread that nothing goes with."""
        return any(self._done.values())

    def is_sent(self) -> bool:
        """Whether all are sent."""
        return not (self._under_way or self._going or self._riding[0] or self.has_more())

    def unsent(self) -> Mapping[str, list[int]]:
        """Those that the thread has still to send, of each worker."""
        workers = {*self._going, *self._done}
        return {w: [*self._going.get(w, ()), *self._done.get(w, ())] for w in workers}

    def call_back(self) -> None:
        """What ``take`` gave out may never be sent: the thread sends it as well."""
        for worker in list(self._under_way):
            self.not_sent(worker)
        self.ends_not_sent()

    def forget(self, tags: Sequence[str], *, acked: bool) -> None:
        """They are claims no more, and were acknowledged, or went back."""
        ends = [self.along.pop(tag, None) for tag in tags] if self.along else [None] * len(tags)
        if acked:
            self._lately.extend(tags)
            self._lately_along.extend(ends)

    # -- along with a claim ------------------------------------------------------------

    def take(self, worker: str) -> list[int]:
        """Numbers to delete along with the next claim; ``sent`` or ``not_sent`` has to follow."""
        with self._lock:
            numbers = self._done.get(worker)
            if not numbers:
                return []
            self._took = worker
            self._done[worker] = numbers[BATCH:]
            self._under_way.setdefault(worker, []).extend(numbers[:BATCH])
            return numbers[:BATCH]

    def take_ends(self, late: bool) -> Along | None:
        """Ends that the connection that fetches is to write down now, if it is time for that.

        ``ends_sent``, ``ends_not_sent`` or ``ends_failed`` has to follow.

        Args:
            late: It is not a good moment.
        """
        ends, workers, numbers = self._ends
        if not ends or self._ends_along is None:
            return None
        now, (seconds, many) = time.monotonic(), (LATE, LATE_ENDS) if late else (RIPE, RIPE_ENDS)
        if now < self._along_from or (len(ends) < many and now < self._ends_since + seconds):
            return None
        with self._lock:
            if self._is_writing or self._riding[0]:
                return None
            self._is_writing = True
            some = ends[:ENDS], workers[:ENDS], numbers[:ENDS]
        count = 0
        try:
            along = self._ends_along(self.store, *some)
            count = along.many
        finally:
            with self._lock:
                self._is_writing = False
                for riding, waiting in zip(self._riding, self._ends, strict=True):
                    riding += waiting[:count]
                    del waiting[:count]
                if count:
                    self._ends_since = now
                else:  # what this way cannot say, the thread can
                    self._along_from = now + GATHER_ENDS
        return along if count else None

    def sent(self, worker: str) -> None:
        """What ``take`` gave out is deleted."""
        with self._lock:
            self._on_sent(worker, self._under_way.pop(worker, ()))

    def ends_sent(self, along: Along, answer: Any) -> None:
        """They were taken along, and are written down."""
        with self._lock:
            self._off(self._riding)
        along.heard(answer)

    def ends_failed(self) -> None:
        """They were taken along, and are not written down. Under the lock."""
        self._along_from = time.monotonic() + NOT_ALONG
        self.ends_not_sent()

    def not_sent(self, worker: str) -> None:
        """What ``take`` gave out may not be deleted. Under the lock."""
        self._done.setdefault(worker, []).extend(self._under_way.pop(worker, ()))

    def ends_not_sent(self) -> None:
        """What ``take_ends`` gave out may not be written down. Under the lock."""
        if self._riding[0]:
            self._ends_since = 0.0
        for riding, some in zip(self._riding, self._ends, strict=True):
            some += riding  # behind those that the thread is just writing down
            riding.clear()

    def _off(self, ends: tuple[list[Any], list[Any], list[Any]], count: int = ENDS) -> None:
        """The first ones are written down. Under the lock."""
        _, workers, numbers = (some[:count] for some in ends)
        for some in ends:
            del some[:count]
        for worker in set(workers):
            if workers.count(worker) < len(workers):
                pairs = zip(workers, numbers, strict=True)
                self._on_sent(worker, [number for of, number in pairs if of == worker])
            else:  # most often
                self._on_sent(worker, numbers)

    # -- in the thread -----------------------------------------------------------------

    def send(self, *, at_once: bool) -> None:
        """Send what there is, unless claims take it along; then it is looked at again.

        Args:
            at_once: Anyway.

        Raises:
            StoreAway: Redis did not answer; to be done again.
        """
        with self._lock:
            took, self._took = None if at_once else self._took, None
            batch = {w: numbers for w, numbers in self._done.items() if numbers and w != took}
            self._done = {w: numbers for w, numbers in self._done.items() if w not in batch}
            self._going = batch
        try:
            for worker in list(batch):
                self.delete(worker, batch[worker])
                with self._lock:
                    self._on_sent(worker, batch.pop(worker))
        finally:
            with self._lock:
                for worker, numbers in batch.items():
                    self._done.setdefault(worker, []).extend(numbers)
                self._going = {}

    def send_ends(self, *, at_once: bool) -> None:
        """Send those that something goes with, if they have been gathered for long enough.

        Args:
            at_once: Anyway.

        Raises:
            StoreAway: As ``send``.
        """
        ends, workers, numbers = self._ends
        while ends and (at_once or self._is_time_for_ends()):
            with self._lock:
                if self._is_writing:  # they are about to be taken along
                    return
                self._is_writing = True
                claims = list(zip(workers[:ENDS], numbers, strict=False))
                batch = list(zip(ends, claims, strict=False))
            try:
                try:
                    self._write_ends(self.store, batch)
                except StoreForbidden:  # said there; waiting changes nothing
                    for worker, number in claims:
                        self.delete(worker, [number])
                with self._lock:
                    self._off(self._ends, len(batch))
                    self._ends_since = time.monotonic()  # at the earliest: others came meanwhile
            finally:
                self._is_writing = False

    def _is_time_for_ends(self) -> bool:
        if len(self._ends[0]) >= MANY_ENDS:
            return True
        return time.monotonic() >= min(self._end_came + QUIET, self._ends_since + GATHER_ENDS)

    def once_more(self, worker: str, numbers: list[int]) -> list[int]:
        """Of these claims, those that were not acknowledged: the others are, once more.

        Raises:
            StoreAway: As ``send``.
        """
        with self._lock:
            tags, along = list(self._lately), list(self._lately_along)
        lately = set(tags)
        again = [number for number in numbers if f"{worker}/{number}" in lately]
        if again:
            with_ends = {tag: end for tag, end in zip(tags, along, strict=True) if end is not None}
            ends = {n: e for n in again if (e := with_ends.get(f"{worker}/{n}"))}
            if ends:
                self._write_ends(self.store, [(end, (worker, n)) for n, end in ends.items()])
            self.delete(worker, [number for number in again if number not in ends])
            log(logger, logging.INFO, "Redis had lost %d acknowledgements", len(again))
        return [number for number in numbers if f"{worker}/{number}" not in lately]

    def delete(self, worker: str, numbers: list[int]) -> None:
        """Delete claims now. Raises what ``send`` does."""
        for start in range(0, len(numbers), BATCH):
            part = numbers[start : start + BATCH]
            self.store.execute("HDEL", [claims_key(worker)], part, insist=True)
