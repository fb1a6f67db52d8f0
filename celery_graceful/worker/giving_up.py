"""What becomes of tasks that the hard deadline took away: who is told, and the way back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from celery_graceful.checkpoints.resume import count_given_up
from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.moments import enter
from celery_graceful.deliveries.requeue import NotTaken
from celery_graceful.deliveries.stage import Stage
from celery_graceful.history.entry import What
from celery_graceful.messages.bounded_connections import SpareConnections, send_events, use
from celery_graceful.messages.brokers_without_acks import is_kept_here
from celery_graceful.monitors import outcome
from celery_graceful.system import native
from celery_graceful.system.describe import describe
from celery_graceful.system.log_thread import LogThread
from celery_graceful.system.native import bounded, bounded_all
from celery_graceful.task.base import record
from celery_graceful.timeline.board import Board
from celery_graceful.timeline.grace_period import Deadlines
from celery_graceful.worker.other_consumers import OtherConsumers
from celery_graceful.worker.report import listed

__all__ = ["GivingUp"]

#: Seconds at most before the hard deadline at which a connection is opened for it.
LEAD = 2.0

#: Shares of the time from the hard deadline to the end of the grace. Together they last until
#: about the last resort, which is at 0.6 of it: then nobody answers, and the process leaves.
STARTS, TELL, GIVE_BACK, RECORD, OTHERS = 0.05, 0.2, 0.25, 0.07, 0.05

#: Why, for the history.
WHY = "hard deadline"

#: Seconds between looks at what others are sending.
LOOK_AGAIN = 0.01


class GivingUp:
    """Gives up what one worker has not ended at its hard deadline.

    Each part has its share of the time from the hard deadline to the end of the grace, and is
    done in threads of its own: backend, broker and monitors may be slow, silent or gone.

    Args:
        worker: Celery's ``WorkController``.
        ledger: What it holds.
        board: Why it stops, and until when it is there.
        deadlines: Seconds after a request to stop.
        others: What it consumes besides its tasks.
        log: Holds up nobody.
        keep: Keeps the message of one that cannot go back, for people; told why, it says where, or
            ``None``.
    """

    def __init__(
        self,
        worker: Any,
        ledger: Ledger,
        board: Board,
        deadlines: Deadlines,
        others: OtherConsumers,
        log: LogThread,
        keep: Callable[[HeldMessage, str], str | None] = lambda request, why: None,
    ) -> None:
        self.app = worker.app
        self.hostname = worker.hostname
        self.ledger = ledger
        self.board = board
        self.others = others
        self.log = log
        self._keep = keep
        self.room = deadlines.grace - deadlines.hard
        #: Seconds before the hard deadline at which ``prepare`` is due.
        self.lead = min(LEAD, deadlines.hard - deadlines.soft)
        #: What still ran at the hard deadline has been given up.
        self.has_begun = False
        self._under_way = native.Latch()
        #: Where events go, which is not where messages come from if the app has two brokers.
        self._events = self.app.connection_for_write()
        self._to_tell: SpareConnections | None = None
        self._to_give_back: SpareConnections | None = None
        #: What is to be given up, and stands at its broker, whatever becomes of it here.
        self._at_broker: list[HeldMessage] = []
        self._points: dict[HeldMessage, str] = {}
        self._said_lock = native.Lock()
        #: Of which has been said that they could not be given back.
        self._said: list[HeldMessage] = []
        #: Those of them that are off their queue, and why; until they are kept, or said to be lost.
        self._gone: list[tuple[HeldMessage, str]] = []
        self._keeps = True

    def prepare(self) -> None:
        """Connect to the broker, if there will be something to send."""
        active, source = self.ledger.active(), self.ledger.requeue.broker
        timeout = self.lead + 0.8 * TELL * self.room
        if any(r.wants_events for r in active):
            self._to_tell = SpareConnections(self._events, timeout)
        if self.ledger.requeue.deferred or any(r.acknowledged for r in active):
            same = self._to_tell is not None and _address(source) == _address(self._events)
            self._to_give_back = self._to_tell if same else SpareConnections(source, timeout)

    def end(self) -> None:
        """There is nothing to give up any more."""
        for spare_connections in (self._to_tell, self._to_give_back):
            if spare_connections is not None:
                spare_connections.close()

    @contextmanager
    def begin(self) -> Iterator[None]:
        """The hard deadline has passed: around all that is done then, once."""
        with self._under_way:
            self.has_begun = True
            yield

    def wait(self) -> None:
        """Let what begins at the hard deadline end, before the interpreter begins its own end.

        Python since 3.12 starts no thread after that.
        """
        left = max(0.0, self.board.last_resort_at - time.monotonic())
        if self.has_begun and self._under_way.acquire(timeout=left):
            self._under_way.release()

    def give_up(self, requests: list[HeldMessage], point_of: Callable[[HeldMessage], str]) -> None:
        """Tell everybody of ``requests``, give them back, and what waits for it, and count.

        Those that had not begun only go back.

        Args:
            requests: What the ledger has given up.
            point_of: Where one stood; empty if that is not known.
        """
        self._note_those_at_broker(requests)
        begun = [request for request in requests if request.stage is Stage.GIVEN_UP]
        self._points = {request: point for request in begun if (point := point_of(request))}
        for request, point in self._points.items():
            enter([request], What.GIVEN_UP, WHY, point)
        enter([r for r in begun if r not in self._points], What.GIVEN_UP, WHY)
        enter([r for r in requests if r not in begun], What.RELEASED, WHY)
        start_notes = self.ledger.post_mortems.start_notes
        if start_notes is not None:  # before somebody else gets them
            bounded(lambda: start_notes.flush(STARTS * self.room), STARTS * self.room)
        requeue, left = self.ledger.requeue, list(requests)
        if requests or requeue.deferred or requeue.sending:
            self._tell(begun, TELL * self.room)
            if not bounded(lambda: self._give_back(left), GIVE_BACK * self.room):
                left += [request for request in requeue.sending if request not in left]
                self._could_not(left, "no answer in time")
            bounded_all([lambda: _count(begun), self._keep_gone], RECORD * self.room)
            self._keeps = False
            self._say_lost()
        bounded(self._give_back_others, OTHERS * self.room)
        self.end()

    def _tell(self, requests: list[HeldMessage], seconds: float) -> None:
        told = bounded_all(
            [
                lambda: self._tell_backend(requests),
                lambda: self._tell_listeners(requests, seconds / 2),
                lambda: outcome.interrupted(requests, seconds / 5),
            ],
            seconds,
        )
        if not told:
            self.log(
                logging.WARNING,
                "No time to tell all (backend, event listeners, monitors) that %s goes back",
                listed(requests),
            )

    def _tell_backend(self, requests: list[HeldMessage]) -> None:
        """Store their state and send ``task_interrupted``, in the main process."""
        reason = str(self.board.reason)
        for request in requests:
            record(request.task, request.context, reason, given_up=True)

    def _tell_listeners(self, requests: list[HeldMessage], timeout: float) -> None:
        """Send their events, over a connection of their own: the loop may be stuck."""
        wanted = [request for request in requests if request.wants_events]
        reason = str(self.board.reason)

        def send(connection: Any) -> None:
            where = self._points.get
            told = [{"uuid": r.id, "reason": reason, "where": where(r, "")} for r in wanted]
            events = [("task-interrupted", fields) for fields in told]
            send_events(connection, self.app, self.hostname, events)

        try:
            if wanted:
                use(self._to_tell, self._events, send, timeout)
        except Exception as exc:  # events may be lost
            self.log(
                logging.WARNING,
                "Could not send the events of %s: %s",
                listed(wanted),
                describe(exc),
            )

    def _give_back(self, left: list[HeldMessage]) -> None:
        """Give back what is ``left``, and wait for what others are sending."""
        requeue = self.ledger.requeue
        self._try_to(requeue.flush, left)
        self._try_to(partial(requeue.give_back, list(left)), left)
        left.clear()
        while requeue.sending:
            native.pause(LOOK_AGAIN)
        self._try_to(requeue.flush, left)  # it may have failed

    def _try_to(self, give_back: Callable[..., Any], requests: list[HeldMessage]) -> None:
        timeout = GIVE_BACK * self.room
        try:
            give_back(timeout=timeout, own_thread=True, spare_connections=self._to_give_back)
        except NotTaken as exc:
            self._could_not(exc.requests, str(exc), lost=True)
        except Exception as exc:
            self.ledger.note_failure()
            self._could_not(requests, describe(exc))

    def _give_back_others(self) -> None:
        try:
            self.others.give_back()
        except Exception as exc:
            self.ledger.note_failure()
            self.log(logging.CRITICAL, "Could not give back what consumer steps hold: %r", exc)

    def _could_not(self, requests: Sequence[HeldMessage], why: str, *, lost: bool = False) -> None:
        if not requests:
            return
        self.ledger.note_failure()
        with self._said_lock:  # a thread that took too long may still come to say the same
            requests = [r for r in requests if r not in self._said]
            self._said += requests
        gone = [r for r in requests if lost or self._is_off_its_queue(r)]
        self._gone += [(request, why) for request in gone]
        held = [r for r in requests if r not in gone]
        if held:
            self.log(
                logging.CRITICAL,
                "Could not give %s back (%s): the broker delivers again what it has not seen "
                "acknowledged",
                listed(held),
                why,
            )
        if not self._keeps:
            self._say_lost()

    def _keep_gone(self) -> None:
        for request, why in list(self._gone):
            try:
                place = self._keep(request, f"it could not go back to its queue: {why}")
            except Exception as exc:
                self.log(logging.ERROR, "Could not keep %s: %s", listed([request]), describe(exc))
                return
            if place is None:
                return
            with suppress(ValueError):  # it took too long
                self._gone.remove((request, why))
            self.log(
                logging.ERROR,
                "%s is %s: off its queue since it was started, it could not be sent again (%s)",
                listed([request]),
                place,
                why,
            )

    def _say_lost(self) -> None:
        gone, self._gone = self._gone, []
        for why in dict.fromkeys(why for _, why in gone):
            self.log(
                logging.CRITICAL,
                "Lost: %s, off the queue since it was started, could not be sent again (%s)",
                listed([request for request, said in gone if said == why]),
                why,
            )

    def _note_those_at_broker(self, requests: Sequence[HeldMessage]) -> None:
        self._at_broker = [r for r in requests if not self._is_off_its_queue(r)]

    def _is_off_its_queue(self, request: HeldMessage) -> bool:
        """Whether nobody but us has its message. What could not go back by itself still stands."""
        if request in self._at_broker:
            return False
        return request.acknowledged or is_kept_here(request.message.channel)


def _address(connection: Any) -> str:
    return str(connection.as_uri(include_password=True))


def _count(requests: list[HeldMessage]) -> None:
    """Count them in the store, for ``max_interruptions``."""
    for request in requests:
        began = request.started_at or time.monotonic()
        count_given_up(request.task, request.context, began)
