"""The thread in which a worker sets messages aside, and looks for those that it can have.

The loop never waits for a store. What is in hand here is a claim, or not acknowledged, until it is
safe elsewhere: a kill at any moment loses nothing.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.batches.ends import Ends
from celery_graceful.claims.held_claims import Tag
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.messages.fields import fields_of
from celery_graceful.messages.validation import flaw_of
from celery_graceful.store.store import StoreAway
from celery_graceful.system import native
from celery_graceful.system.log_thread import log
from celery_graceful.timeline.board import Board
from celery_graceful.unusable.destinations import Case, Destination

__all__ = ["SetAside", "where"]

logger = get_logger(__name__)

#: Messages to take at once where the prefetch count sets no limit.
WINDOW = 64

#: Messages in hand, from which on they count against what is prefetched.
MOST = 1000

#: Seconds until a destination that was away is tried again; and that a worker which has nothing
#: else to do waits for what has been begun: for an answer that is late, and another try.
AGAIN, LAST = 0.5, 2.0

#: Share of its last seconds in which it begins to give back some more.
LEAVING = 0.8

#: Seconds between looks at what waits: while something does that is known here, or is not; and for
#: which it is believed else that nothing does, as all that was asked for lately.
KNOWN, UNKNOWN, IDLE = 0.5, 1.0, 6.0


@dataclass
class _Hand:
    """What came over one connection.

    Attributes:
        cases: What is to be set aside.
        begun: The first of them, which are being copied, or may have been.
        done: What is safe elsewhere and has to be acknowledged, in the loop.
    """

    cases: deque[Case] = field(default_factory=deque)
    begun: list[Case] = field(default_factory=list)
    done: deque[Case] = field(default_factory=deque)


class SetAside:
    """Of one worker.

    Args:
        destination: Where to put them.
        ledger: What the worker holds.
        board: Says when nothing is fetched any more.
        patience: Seconds that a message may wait for a worker that knows its task.
        ends: Has to know of members of batches that nobody will run, and nobody tells of.
        ring_loop: Makes the loop take what is done and what has arrived.
    """

    def __init__(
        self,
        destination: Destination,
        ledger: Ledger,
        board: Board,
        patience: float,
        ends: Ends,
        ring_loop: Callable[[], None],
    ) -> None:
        self.destination = destination
        self.ledger = ledger
        self.board = board
        self.patience = patience
        self.ends = ends
        self.ring_loop = ring_loop
        #: Celery's consumer, while it is connected.
        self.consumer: Any = None
        #: What waited and is known here: queue, message and claim, to be delivered in the loop.
        self.arrived: deque[tuple[str, str, Tag]] = deque()
        #: Messages that wait, for tasks that are not known here.
        self.waiting = 0
        #: More waits that is known here than there is room for: look when something has ended.
        self.hungry = False
        self._hand = _Hand()
        #: Names of tasks whose messages waited too long, as far as they were told.
        self._given_up: set[str] = set()
        self._bell, self._gone = native.Doorbell(), native.Doorbell()
        self._ended = False
        self._look_at = self._leave_by = self._finished_at = 0.0
        #: For how many seconds it is believed that nothing waits.
        self._age = 0.0
        native.start_thread(self._run, "graceful-set-aside")

    def put(self, case: Case) -> None:
        """Set a message aside. In the loop."""
        if case.tag is not None and len(self._hand.cases) < MOST:
            case.free()
        self._hand.cases.append(case)
        self._bell.ring()

    @property
    def done(self) -> deque[Case]:
        """What is safe elsewhere and has to be acknowledged, in the loop."""
        return self._hand.done

    def attach(self, destination: Destination, consumer: Any) -> None:
        """Celery's consumer is connected: from now on messages go to ``destination``."""
        self.destination = destination
        self.consumer = consumer
        self.look()

    def detach(self) -> None:
        """The connection is gone: what came over it is given back, or comes again, by itself."""
        self.consumer = None
        self._hand = _Hand()
        books = {id(tag.book): tag.book for *_, tag in self.arrived}
        self.arrived.clear()
        for book in books.values():  # as all that no request answers for
            book.let_go()

    def look(self) -> None:
        """Look at what waits now."""
        self._look_at = self._age = 0.0
        self._bell.ring()

    def finish(self) -> bool:
        """Begin nothing more, since the worker has nothing else to do: it comes again elsewhere.

        Returns:
            Whether it can go. What was copied has to be acknowledged, or it is there twice.
        """
        if self.ledger.claims is not None:
            return True
        now = time.monotonic()
        self._finished_at = self._finished_at or now
        return not (self._hand.begun or self._hand.done) or now >= self._finished_at + LAST

    def end(self, seconds: float) -> None:
        """The worker has ended: what waits goes back if nobody is left to give it back."""
        self._leave_by = time.monotonic() + LEAVING * seconds
        self._ended = True
        self._bell.ring()
        self._gone.wait(seconds)
        self._bell = self._gone = native.SILENT

    def _run(self) -> None:
        while not self._ended:
            pause = AGAIN
            try:
                more = self._set_aside()
                if time.monotonic() >= self._look_at:
                    self._look()
                pause = 0.0 if more else self._look_at - time.monotonic()
            except StoreAway:
                self.ring_loop()  # said there; all is where it was. A drain may have waited
            except Exception as exc:  # it must not end, and not say what a message says
                log(logger, logging.ERROR, "Messages stay where they are: %s", where(exc))
            self._bell.wait(max(0.0, pause))
        try:
            self.destination.leave(self._leave_by)
        except StoreAway as exc:
            log(logger, logging.WARNING, "What waits stays in Redis: %s", exc)
        except Exception as exc:
            log(logger, logging.WARNING, "What waits stays in Redis: %s", where(exc))
        self._gone.ring()

    def _set_aside(self) -> bool:
        """Set some aside; whether there is more to do."""
        hand = self._hand
        cases = hand.cases
        if not hand.begun:  # else the same again: how much of it has been done is not known
            most = min(len(cases), self.destination.at_once)
            hand.begun = [cases[index] for index in range(most)]
            if self._finished_at:  # asked last: whoever finished before has not seen what is begun
                hand.begun = []
        batch = hand.begun
        if not batch:
            return False
        unknown = [case for case in batch if not case.why]
        over = self.destination.wait(unknown) if unknown else []
        for case in [*over, *(case for case in batch if case.why)]:
            try:
                self._keep(case)
            except StoreAway:
                raise
            except Exception as exc:  # it stays where it is, and holds up nobody else
                case.leave_there()
                log(logger, logging.ERROR, "A message stays where it is: %s", where(exc))
        for case in batch:
            if not case.stuck:
                hand.done.append(case)
            cases.popleft()
        hand.begun = []  # last, or a drain would not wait for what has to be acknowledged
        if unknown:
            self._look_at, self._age = min(self._look_at, time.monotonic() + UNKNOWN), 0.0
        self.ring_loop()
        return bool(cases)

    def _keep(self, case: Case) -> None:
        if case.kept:
            return
        why = case.why or (
            f"in {self.patience:g} s no worker that got it has known its task "
            "(graceful_unknown_task_patience)"
        )
        # A failure can be told where its callbacks can be read.
        tell = not case.why and flaw_of(case.message) is None
        if not tell and case.message is not None:
            self.ends.write_failed(fields_of(case.message))
        place = self.destination.keep(case, why, tell)
        if place is None:
            return
        case.put_away()
        if case.why:
            text = "A message of queue %s cannot be used: %s. It is %s"
            log(logger, logging.ERROR, text, case.queue or "?", why, place)
        elif case.name not in self._given_up:
            self._given_up.add(case.name)
            text = "What waits for the task %.200r has waited for long enough, and %s: %s"
            log(logger, logging.ERROR, text, case.name, self.destination.end, why)

    def _look(self) -> None:
        consumer = self.consumer
        if self.board.is_quiet or consumer is None or consumer.task_consumer is None:
            self._look_at = time.monotonic() + UNKNOWN
            return
        kinds = self.destination.kinds(self._age)
        self._age = 0.0 if kinds else IDLE
        queues = {queue.name for queue in consumer.task_consumer.queues}
        known = [k for k in kinds if k.name in consumer.strategies and k.queue in queues]
        self.waiting = sum(kinds.values()) - sum(kinds[kind] for kind in known)
        hungry = False
        for kind in known:
            room = self._room()
            found = self.destination.take(kind, room)
            self.arrived.extend((kind.queue, text, tag) for text, tag in found)
            hungry = hungry or len(found) >= room
        self.hungry = hungry
        if self.arrived:
            self.ring_loop()
        if self.waiting:
            self.destination.back()
        self._look_at = time.monotonic() + (KNOWN if known else UNKNOWN if kinds else IDLE / 3)

    def _room(self) -> int:
        """How many more messages this worker would fetch."""
        consumer = self.consumer
        if consumer is None or consumer.task_consumer is None:
            return 0
        qos = getattr(consumer.task_consumer.channel, "qos", None)
        if qos is not None and not qos.can_consume():
            return 0
        window = min(consumer.qos.value or WINDOW, MOST)
        return max(0, window - len(self.ledger.held) - len(self.arrived))


def where(exc: BaseException) -> str:
    """What was raised and where, without what it says: that may be a message's contents."""
    frames = traceback.extract_tb(exc.__traceback__)[-3:]
    path = " < ".join(f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in frames[::-1])
    return f"{type(exc).__name__} in {path}"
