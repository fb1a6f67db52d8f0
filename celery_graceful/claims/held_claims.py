"""Claims: messages that this worker holds, and how it lets go of them.

What is acknowledged is gathered (``acks``), and what goes back is moved by scripts (``moves``), or
from memory (``in_memory``) when Redis has lost its data.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.claims.acks import Acks, Along, EndsAlong, WriteEnds
from celery_graceful.claims.begun import Begun
from celery_graceful.claims.claimant import Claimant, claims_key
from celery_graceful.claims.ear import Ear
from celery_graceful.claims.in_memory import InMemory
from celery_graceful.claims.moves import from_entry, move, read
from celery_graceful.claims.sending import Sending
from celery_graceful.claims.undelivered import Undelivered
from celery_graceful.store.store import COMMAND_TIMEOUT, Store, StoreAway
from celery_graceful.system import native
from celery_graceful.system.log_thread import log

__all__ = ["Claims", "Tag"]

logger = get_logger(__name__)

Step = Callable[[], object]

#: Seconds for which a network may keep what was sent over a connection that is lost: TCP tries
#: again after two minutes at most (RFC 6298, and Linux's TCP_RTO_MAX).
LATE = 180.0


class Tag(str):
    """Delivery tag of a claimed message: the worker's id and the number of the claim."""

    worker: str
    number: int
    #: Whose claim it is, of a message that was fetched here.
    book: Claims
    #: The key of the list that it came from, and the epoch in which it was claimed.
    source = epoch = ""
    #: It is acknowledged when its task begins: that is not to run again.
    is_early = False

    def __new__(cls, worker: str, number: int) -> Tag:
        tag = super().__new__(cls, f"{worker}/{number}")
        tag.worker, tag.number = worker, number
        return tag

    def __reduce__(self) -> Any:  # a string is enough for other processes
        return str, (str(self),)


class Claims:
    """What a worker has claimed on one server, under all of its identities.

    Nothing of it belongs to the process: whoever consumes beside the worker, or was forked from
    it, knows of no claims.

    Args:
        store: The Redis that is the broker.
        on_no_message: Told of a claim that is no message of kombu's, and what was raised; it stays
            a claim.
        on_room: Called after an acknowledgement while nothing is fetched: there may be room again.
        has_enough: Whether a fetch can wait, with room for so many, until there is more; told the
            seconds that the last one took, too.
        goes_back: Whether what is fetched now goes back: then nothing is.
        release: Gives back what has not been started, all that is undelivered with it.
        on_refused: Called each time Redis refuses a claim, with the seconds for which it has.
        write_ends: Writes down what goes with acknowledgements.
        ends_along: The same, with claims or between them, over their connection.
        delivers_at_once: To deliver a message never waits, neither for a task nor for the pool.
    """

    def __init__(
        self,
        store: Store,
        *,
        on_no_message: Callable[[Tag, Exception], None] = lambda tag, exc: None,
        on_room: Callable[[], None] = lambda: None,
        has_enough: Callable[[int, float], bool] = lambda room, took: False,
        goes_back: Callable[[], bool] = lambda: False,
        release: Callable[[], None] = lambda: None,
        on_refused: Callable[[float], None] = lambda seconds: None,
        write_ends: WriteEnds = lambda store, ends: None,
        ends_along: EndsAlong | None = None,
        delivers_at_once: bool = False,
    ) -> None:
        self.store = store
        #: Under whom it claims now; ``None`` where it must not.
        self.who: Claimant | None = None
        #: Claims of what has ended for good, whose acknowledgement may still wait for the loop.
        self.ended: set[str] = set()
        #: Claims of what has begun to run, and would expire.
        self.begun: set[str] = set()
        self._lock = native.Lock()
        self._here = InMemory(self._lock, self._first_epoch, self._delete, self._delete_soon)
        #: Messages by their claims, see there.
        self.held, self.arriving = self._here.held, self._here.arriving
        self.undelivered = Undelivered()
        self._acks = Acks(store, self._lock, self._off_hands, write_ends, ends_along)
        #: ``end_with(tag, end)``: when that claim is acknowledged, write that end down in the same
        #: step. From any thread.
        self.end_with: Callable[[str, Any], None] = self._acks.along.__setitem__
        #: ``take_ends(late)``: what is to be written down with acknowledgements, see there.
        self.take_ends: Callable[[bool], Along | None] = self._acks.take_ends
        self._sending = Sending(self._lock, self._send, self._has_more)
        self.running = Begun(store, self._sending.rouse)
        #: Who listens for what nobody rings for.
        self.ear = Ear(store)
        self.on_no_message, self.on_room, self.on_refused = on_no_message, on_room, on_refused
        self.has_enough, self.goes_back, self.release = has_enough, goes_back, release
        self.delivers_at_once = delivers_at_once
        #: When the last one was acknowledged, on the monotonic clock.
        self.acked_at = 0.0
        #: Since when it does, on the monotonic clock.
        self.refused_since: float | None = None
        self._orphans: list[tuple[str, Container[int]]] = []
        #: Claims of which an answer was lost, which may be made yet: of whom, and until when.
        self._late: list[tuple[float, str, Container[int]]] = []

    def tag(self, worker: str, number: int, source: str = "", epoch: str = "") -> Tag:
        """The tag of one of these claims, of the list ``source``, made in that epoch."""
        tag = Tag(worker, number)
        tag.book, tag.source, tag.epoch = self, source, epoch
        return tag

    def claim_as(self, who: Claimant | None) -> None:
        """Claim under that identity from now on; ``None``: not at all."""
        self.who = who

    def refused(self) -> None:
        """Redis has refused a claim: the worker is not registered there."""
        now = time.monotonic()
        if self.refused_since is None:
            self.refused_since = now
        self.on_refused(now - self.refused_since)

    # -- acknowledgements ----------------------------------------------------------

    def ack(self, tag: Tag) -> None:
        """Delete a claim soon. From any thread."""
        self.acked_at = now = time.monotonic()
        with self._lock:
            self._acks.add(tag.worker, tag.number, tag, now)
            if tag in self.held:
                self.held[tag] = None  # what is kept for long is slow to come by for others
        self.running.discard(tag)
        if tag.is_early:
            self._sending.urge()
        self._sending.rouse()

    def settle(self) -> None:
        """Acknowledge what has ended, also what waits for a loop that may not go round again."""
        for tag in list(self.ended):
            worker, _, number = tag.rpartition("/")
            self.ack(Tag(worker, int(number)))

    def take_done(self, worker: str) -> list[int]:
        """Numbers to delete along with the next claim; ``sent`` or ``not_sent`` has to follow."""
        return self._acks.take(worker)

    def sent(self, worker: str, *, accepted: bool = True) -> None:
        """What ``take_done`` gave out is deleted; and Redis has taken the claim, or not."""
        if accepted:
            self.refused_since = None
        self._acks.sent(worker)

    def not_sent(self, worker: str) -> None:
        """What ``take_done`` gave out may not be deleted."""
        self._send_again(lambda: self._acks.not_sent(worker))

    def ends_sent(self, along: Along, answer: Any) -> None:
        """What that step answered: text is why it was not done."""
        if isinstance(answer, str):
            self._send_again(self._acks.ends_failed)
        else:
            self._acks.ends_sent(along, answer)

    def ends_not_sent(self) -> None:
        """What ``take_ends`` gave out may not be written down."""
        self._send_again(self._acks.ends_not_sent)

    def _send_again(self, put_back: Step) -> None:
        with self._lock:
            put_back()
            self._sending.awaken()
        self._sending.wake()

    def flush(self, seconds: float) -> bool:
        """Wait until everything is sent, for up to ``seconds``; whether it is."""
        with self._lock:
            self._acks.call_back()
            if self._is_sent():
                return True
            self._sending.hurry()
        self._sending.wait(seconds)
        with self._lock:
            return self._is_sent()

    def end(self, seconds: float) -> None:
        """End the threads; wait for that for up to ``seconds``."""
        until = time.monotonic() + seconds
        self._sending.end(seconds)
        self.ear.end(max(0.0, until - time.monotonic()))

    def _send(self, at_once: bool) -> None:
        orphans = len(self._orphans)  # what was acknowledged before is sent before they go back
        all_at_once = at_once or orphans > 0
        self._acks.send(at_once=all_at_once)
        if not self._acks.has_plain():  # else a claim takes them along, or the next look
            self._sending.calm()
        try:
            self._acks.send_ends(at_once=all_at_once)
        finally:  # what cannot be written down keeps nobody else
            self._send_orphans(orphans)
            self.running.send(at_once=at_once)

    def _has_more(self) -> object:
        return self._orphans or self.running.has_news or self._acks.has_more()

    def _off_hands(self, worker: str, numbers: Iterable[int], *, acked: bool = True) -> None:
        tags = [f"{worker}/{number}" for number in numbers]
        for tag in tags if not acked else ():  # else that was done when it was
            self.running.discard(tag)
        self.ended.difference_update(tags)
        self.begun.difference_update(tags)
        self._acks.forget(tags, acked=acked)
        self._here.forget(tags)

    # -- back to the queue ---------------------------------------------------------

    def give_back(
        self,
        tags: Iterable[Tag],
        *,
        tail: bool = False,
        timeout: float = COMMAND_TIMEOUT,
        on_step: Step = bool,
    ) -> int:
        """Give claims back to the lists that they came from, at most once each.

        Args:
            tags: Whose; the first one is the next to be delivered.
            tail: Behind all that waits.
            timeout: Seconds for each command.
            on_step: Called when some of them went back, and again.

        Returns:
            How many went back; the others were acknowledged, or somebody else gave them back.

        Raises:
            StoreAway: Redis did not answer. What was not given back is still claimed, and goes
                back, to the head, as soon as Redis answers.
        """
        numbers: dict[str, list[int]] = {}
        for tag in tags:
            numbers.setdefault(tag.worker, []).append(tag.number)
        try:
            return sum(
                self._give_back(worker, some, tail, timeout, on_step)
                for worker, some in numbers.items()
            )
        except StoreAway:
            for worker, some in numbers.items():
                for number in some:
                    self.let_go_of(f"{worker}/{number}")
                self._give_back_soon(worker, frozenset(some))
            raise

    def _give_back(
        self, worker: str, numbers: list[int], tail: bool, timeout: float, on_step: Step = bool
    ) -> int:
        moved = 0
        order = numbers if tail else numbers[::-1]  # each goes in front of the one before it
        for found in read(self.store, worker, order, timeout=timeout, insist=True):
            moves, there = [], []
            for one in found:
                tag = f"{worker}/{one.number}"
                begun = tag in self.begun
                if one.entry is None:
                    moves += self._here.moves(tag, begun=begun)
                else:
                    self._here.see(tag, one.epoch)
                    epoch = one.epoch if self._here.knows(tag) else ""
                    moves.append(
                        from_entry(one.number, one.entry, begun=begun, epoch=epoch, cut=one.cut)
                    )
                    there += [(tag, begun)]
            went = move(self.store, worker, moves, tail=tail, timeout=timeout)
            if went < len(moves):  # Redis may have lost them since they were read
                moves = [
                    each for tag, begun in there for each in self._here.moves(tag, begun=begun)
                ]
                went += move(self.store, worker, moves, tail=tail, timeout=timeout)
            moved += went
            with self._lock:
                self._off_hands(worker, [one.number for one in found], acked=False)
                for one in found:
                    self._here.went_back(f"{worker}/{one.number}")
            on_step()
        return moved

    @property
    def has_ends(self) -> bool:
        """Whether something is still to be written down with an acknowledgement."""
        return self._acks.has_ends

    def is_done(self) -> bool:
        """Whether nothing is on our hands any more: held, or still to be sent."""
        with self._lock:
            return not self.held and self._is_sent()

    def _is_sent(self) -> bool:
        return not self._orphans and self._acks.is_sent()

    def left(self) -> int:
        """How many messages may be on our hands still, as far as is known; or their acks."""
        with self._lock:
            known: list[Any] = [o for o in self._orphans if isinstance(o[1], frozenset)]
            unsent = {
                f"{w}/{n}" for w, some in [*self._acks.unsent().items(), *known] for n in some
            }
            return len(unsent.union(self.held, self._here.let_go))

    def let_go_of(self, tag: str) -> None:
        """No request answers for this claim any more: it is about to go back, unless it has been
        acknowledged, and Redis has still to hear of it."""
        self._here.let_go_of(tag)

    def let_go(self) -> None:
        """The connection is lost: what no request answers for goes back, nobody will run it."""
        if self.who is not None:
            self.give_back_late(self.who.worker, range(self.who.take_numbers(0)))

    def give_back_others(self, worker: str, below: int) -> None:
        """Give back, soon, what ``worker`` claims and no request answers for.

        Args:
            worker: An identity of this process.
            below: Only claims with lower numbers: those made before the connection was lost.
        """
        self._give_back_soon(worker, range(below))

    def give_back_late(self, worker: str, numbers: Container[int]) -> None:
        """Give back claims that no request answers for, also those that are made yet.

        What was sent over a connection that is lost may come to Redis a while later.

        Args:
            worker: An identity of this process.
            numbers: Of the claims whose answer was lost.
        """
        with self._lock:
            self._late.append((time.monotonic() + LATE, worker, numbers))
        self._give_back_soon(worker, numbers)

    def look_for_late_ones(self) -> None:
        """Look for them once more, if there may be any: now and then, from any thread."""
        if self._late:
            now = time.monotonic()
            with self._lock:
                late = self._late = [one for one in self._late if one[0] > now]
            for _, worker, numbers in late:
                self._give_back_soon(worker, numbers)

    def _give_back_soon(self, worker: str, numbers: Container[int]) -> None:
        with self._lock:
            self._orphans.append((worker, numbers))
            self._sending.awaken()
        self._sending.wake()

    def give_all_back(self, worker: str, seconds: float) -> bool:
        """The worker ends: give back whatever it still claims, in up to ``seconds``; did Redis?"""
        self.settle()
        with self._lock:
            self._acks.call_back()
        for tag in list(self.held):
            self.let_go_of(tag)
        self.give_back_others(worker, sys.maxsize)
        return self.flush(seconds)

    def _send_orphans(self, count: int) -> None:
        for _ in range(count):
            worker, wanted = self._orphans[0]
            found = set(map(int, self.store.execute("HKEYS", [claims_key(worker)], insist=True)))
            start = len(worker) + 1
            let_go = list(self._here.let_go)
            mine = {int(tag[start:]) for tag in let_go if tag.startswith(f"{worker}/")}
            known = (n for n in found | mine if n in wanted)
            numbers = sorted(n for n in known if f"{worker}/{n}" not in self.held)
            numbers = self._acks.once_more(worker, numbers) if numbers else []
            if numbers:
                moved = self._give_back(worker, numbers, False, COMMAND_TIMEOUT)
                log(logger, logging.INFO, "Gave %d claims back that nobody here works on", moved)
            del self._orphans[0]

    # -- what Redis has lost -------------------------------------------------------

    @contextmanager
    def restoring(self, worker: str, epoch: str) -> Iterator[list[tuple[int, str]]]:
        """A context in which numbers and entries of all that is held are written again.

        Args:
            worker: An identity of this process.
            epoch: That has begun, and knows nothing of it.
        """
        with self._here.restoring(worker, epoch) as entries:
            yield entries
        self.running.again(worker)

    def _first_epoch(self, worker: str) -> str:
        who = self.who
        return who.first_epoch if who is not None and who.worker == worker else ""

    def _delete(self, claims: Iterable[tuple[str, int]]) -> None:
        for worker, number in claims:
            try:
                self._acks.delete(worker, [number])
            except StoreAway:
                with self._lock:
                    self._delete_soon(worker, number)

    def _delete_soon(self, worker: str, number: int) -> None:
        self._acks.add(worker, number)
        self._sending.awaken()
        self._sending.wake()
