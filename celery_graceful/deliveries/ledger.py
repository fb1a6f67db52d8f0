"""The ledger: everything that a worker holds, and what became of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakSet

from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.request import Request

from celery_graceful.claims.claimant import node_of
from celery_graceful.claims.held_claims import Claims, Tag
from celery_graceful.claims.undelivered import Fetched
from celery_graceful.deliveries.handler_errors import let_go
from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.moments import enter, enter_tasks
from celery_graceful.deliveries.requeue import Requeue
from celery_graceful.deliveries.stage import OPEN, UNBEGUN, Stage
from celery_graceful.history.entry import What
from celery_graceful.monitors.check_in import CheckIn
from celery_graceful.poison.post_mortem import PostMortems
from celery_graceful.store.store import StoreAway
from celery_graceful.system import native
from celery_graceful.system.describe import describe
from celery_graceful.timeline import worker_state

__all__ = ["Ledger", "strangers"]

logger = get_logger(__name__)

#: What ends some that have sent what goes on in their place.
_DEADLINE = "hard deadline"


class _Leaving:
    """Deliveries on their way out: ended, and perhaps not acknowledged yet."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        #: One for each. Each step is one of C's: all threads of a pool come here, none waits.
        self.out: deque[None] = deque()

    def __enter__(self) -> None:
        self.out.append(None)

    def __exit__(self, *exc_info: object) -> None:
        self.out.pop()
        self.ledger.changed()


class Ledger:
    """Everything that this worker holds, and what became of it since the drain began.

    Each delivery leaves by exactly one door: the stage of a request changes under one lock,
    and who changes it does what belongs to the change.

    Args:
        requeue: The way back to the queue.
        post_mortems: Hear of the ends of runs.
    """

    def __init__(self, requeue: Requeue, post_mortems: PostMortems) -> None:
        self.requeue = requeue
        self.post_mortems = post_mortems
        #: With which it claims now, on Redis.
        self.claims: Claims | None = None
        self.lock = native.Lock()
        self.held: dict[int, HeldMessage] = {}
        #: What others may hand over, for as long as they keep it.
        self.by_others: WeakSet[HeldMessage] = WeakSet()
        #: A message could not be given back: it is left to the broker.
        self.failed = False
        #: Give back what has not been started instead of starting it.
        self.releasing = False
        #: The hard deadline has its own thread, and sends what it has to say of ends itself.
        self.at_deadline = False
        #: The worker is stopping: lost children are no failures of their tasks.
        self.stopping = False
        self.counts = dict.fromkeys(Stage, 0)
        self.leaving = _Leaving(self)
        self._listeners: list[Callable[[], None]] = []

    # -- what it is told -------------------------------------------------------------

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Call it when a delivery has ended, or one has come that is to go back; in any thread."""
        self._listeners.append(listener)

    def changed(self) -> None:
        """Tell who listens."""
        for listener in self._listeners:
            listener()

    def connected(self, claims: Claims | None) -> None:
        """The consumer is connected, and about to fetch: by claims, on Redis."""
        self.claims = claims

    def begin_release(self) -> None:
        """What arrives, or gets its turn, from now on goes back. Safe in a signal handler."""
        self.releasing = True

    def end_release(self) -> None:
        """What arrives from now on is for this worker again."""
        self.releasing = False

    def begin_stop(self) -> None:
        """The drain begins, and what becomes of its tasks is counted. Safe in a signal handler."""
        self.stopping = True
        self.counts = dict.fromkeys(Stage, 0)

    def note_failure(self, exc: BaseException | None = None) -> None:
        """A message could not be given back: it is left to the broker.

        Args:
            exc: Why. A claim is tried again until the worker leaves, and counts then.
        """
        self.failed = self.failed or not isinstance(exc, StoreAway)

    @property
    def why_released(self) -> str:
        """Why what was not begun goes back, in a word."""
        return "shutdown" if self.stopping else "quiet"

    # -- what it holds ---------------------------------------------------------------

    def enter(self, request: HeldMessage) -> None:
        """It has arrived."""
        self.held[id(request)] = request
        if request.by_others:
            self.by_others.add(request)
        if self.releasing:  # Celery may keep it, for its ETA or its rate limit
            self.changed()

    def open_requests(self) -> list[HeldMessage]:
        """What has no outcome yet, oldest first."""
        return list(self.held.values())

    def active(self) -> list[HeldMessage]:
        """What a pool has taken over, oldest first."""
        return [r for r in self.open_requests() if r.stage is not Stage.RECEIVED]

    @property
    def runs_lost(self) -> bool:
        """Whether something runs whose claim was lost."""
        return any(request.lost for request in self.open_requests())

    def check_ins(self) -> list[CheckIn]:
        """Of what runs."""
        running = (r for r in self.open_requests() if r.stage is Stage.RUNNING and not r.lost)
        found = []
        for request in running:
            check_in = request.check_in
            if check_in is not None:
                check_in.runs_in(request.worker_pid)
                found.append(check_in)
        return found

    # -- within ------------------------------------------------------------------------

    def move(self, requests: Iterable[HeldMessage], stage: Stage, *, only: Iterable[Stage]) -> None:
        """Let those that stand at one of ``only`` go on to ``stage``, which is an open one."""
        with self.lock:
            for request in requests:
                if request.stage in only:
                    request.move(stage)

    def put_down(self, request: HeldMessage) -> None:
        """It was handed over, and nobody has answered it: it is held."""
        with self.lock:
            if request.stage in (Stage.HANDED_OVER, Stage.RUNNING):
                request.put_down()
        if request.claim is not None:
            request.claim.book.running.put_down(request.claim)
        self.changed()

    def hold(self, request: HeldMessage, only: Iterable[Stage]) -> bool:
        """It has ended, if it stands at one of ``only``, and is held until that is stored."""
        with self.lock:
            if request.stage not in only:
                return False
            request.tell_later()
        self.put_down(request)
        return True

    def not_handed_over(self, request: HeldMessage) -> bool:
        """The pool has it no more, and has not begun with it. False: it has left already."""
        with self.lock:
            if request.stage is Stage.HANDED_OVER:
                request.move(Stage.RECEIVED)
            return request.stage is not Stage.RUNNING

    # -- the doors ---------------------------------------------------------------------

    def close(self, request: HeldMessage, stage: Stage, *, only: Iterable[Stage]) -> bool:
        """Let ``request`` leave as ``stage``, if it stands at one of ``only``."""
        with self.lock:
            if request.stage not in only:
                return False
            request.move(stage)
            self.held.pop(id(request), None)
            self.counts[stage] += 1
        if request.told_to_end and worker_state.board.value is not None:
            worker_state.board.value.forget_revoked(request.id)
        if request.note is not None:
            ran = request.running_for if stage is Stage.FINISHED else 0.0
            self.post_mortems.ends(request.id, request.note, ran, wake=not self.at_deadline)
        if not self.leaving.out:  # else who is on the way out says so at the end of it
            self.changed()
        return True

    def finish(self, request: HeldMessage) -> bool:
        """It has ended by itself. False: it was given back before, ignore its end."""
        if request.lost:
            self.drop_lost(request)
            return False
        return self.close(request, Stage.FINISHED, only=OPEN)

    def drop(self, request: HeldMessage) -> None:
        """It has ended elsewhere: in quarantine, or as another delivery."""
        if self.finish(request):
            request.take_mark()
            let_go(request)
            request.acknowledge()

    def drop_lost(self, request: HeldMessage) -> None:
        """It has ended, and another run of it is what counts: say nothing of it."""
        if self.close(request, Stage.LOST, only=OPEN):
            request.take_mark()
            if request.started_at is not None:
                enter([request], What.FENCED, "its claim was not its worker's any more")
            if request.claim is not None:
                request.claim.book.held.pop(request.claim, None)
                request.claim.book.running.discard(request.claim)
                request.take_no_room()
                request.claim.book.on_room()
            let_go(request)

    def leave_to_successors(self) -> list[HeldMessage]:
        """The hard deadline has come: those end that have sent a retry, or what replaces them.

        Returns:
            What else a pool has taken over.
        """
        self.at_deadline = True
        return [r for r in self.active() if not r.leave_to_successor(_DEADLINE)]

    def give_up(self, *, heard: bool) -> list[HeldMessage]:
        """The hard deadline takes away what has not ended; returns it.

        Args:
            heard: The loop goes round, so that what has begun was heard to have begun.
        """
        self.at_deadline = True
        unbegun = UNBEGUN if heard else (Stage.RECEIVED,)
        return [
            request
            for request in self.open_requests()
            if not request.leave_to_successor(_DEADLINE)
            and (
                self.close(request, Stage.RELEASED, only=unbegun)
                or self.close(request, Stage.GIVEN_UP, only=OPEN)
            )
        ]

    def release_unstarted(self) -> None:
        """Give everything back that was not started, in one go. From any thread."""
        try:
            undelivered = [] if self.claims is None else self.claims.undelivered.take()
            self.release(self.open_requests(), self.why_released, undelivered)
        except Exception as exc:
            self.note_failure(exc)
            logger.error("Could not give back what was not started: %s", describe(exc))

    def release(
        self, requests: Iterable[HeldMessage], why: str, undelivered: Sequence[Fetched] = ()
    ) -> list[HeldMessage]:
        """Give back, in one go, which of them were not started; returns those.

        Args:
            requests: Which.
            why: In a word.
            undelivered: Goes back with them: what was claimed, and no requests were made of.

        Raises:
            Exception: What the broker's client raised.
        """
        released = [
            request
            for request in requests
            if self.close(request, Stage.RELEASED, only=(Stage.RECEIVED,))
        ]
        for request in released:
            let_go(request)
        enter(released, What.RELEASED, why)
        tags = [one.delivery_tag for one in undelivered]
        if tags:
            with self.lock:
                self.counts[Stage.RELEASED] += len(tags)
            app, node = self.post_mortems.app, node_of(tags[0].worker)
            enter_tasks(app, node, [one.task for one in undelivered], What.RELEASED, why)
        if released or tags:
            self.requeue.give_back(released, undelivered=tags)
        return released

    def forget_unstarted(self, *, goes_on: bool) -> None:
        """The broker connection is gone, and with it what was not started.

        Celery drops it in ``Consumer.on_close``; the broker, or who keeps the claims, delivers it
        again.

        Args:
            goes_on: The pool will start all that it has been handed, not only what is claimed.
        """
        kept = []
        with self.lock:
            for request in self.open_requests():
                if request.stage is Stage.HANDED_OVER and (goes_on or request.claim is not None):
                    kept.append(request)
                elif request.stage in UNBEGUN and not request.tells_a_run:
                    request.move(Stage.RELEASED)
                    del self.held[id(request)]
                    if request.claim is not None:
                        request.claim.book.let_go_of(request.claim)
        for request in kept:
            state.task_reserved(request)

    def keep_claims(self) -> None:
        """Give back the claims that no request stands for: nobody here will run them."""
        if self.claims is not None:
            for request in strangers(state.reserved_requests, state.active_requests):
                tag = request.message.delivery_tag
                if isinstance(tag, Tag) and not request.acknowledged:
                    tag.book.held.setdefault(tag, request.message)
            self.claims.let_go()

    def lose(self, worker: str) -> None:
        """The claims of an identity of this worker are others' now."""
        for request in self.open_requests():
            claim = request.claim
            # What was acknowledged at its start is nobody else's.
            if claim is not None and claim.worker == worker and not request.acknowledged:
                request.mark_lost()
                if request.stage is Stage.RECEIVED:
                    self.drop_lost(request)


def strangers(*known: Iterable[Any]) -> list[Any]:
    """Requests that Celery knows of in this process, and that are none of a worker of ours.

    Others make them: whoever builds a strategy by hand.
    """
    found: list[Any] = []
    for requests in known:
        found += [r for r in _listed(requests) if not isinstance(r, HeldMessage)]
    return [request for request in found if isinstance(request, Request)]


def _listed(requests: Iterable[Any]) -> list[Any]:
    while True:
        try:
            return list(requests)
        except RuntimeError:  # another thread has added one meanwhile
            pass
