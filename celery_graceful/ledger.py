"""The ledger: everything that a worker holds, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from celery.worker import state

from celery_graceful import native, worker_state
from celery_graceful.aftermath import let_go
from celery_graceful.claims import Claims
from celery_graceful.copies import Copies
from celery_graceful.forget import Forget
from celery_graceful.handover import Handovers
from celery_graceful.inquest import Inquest
from celery_graceful.monitors.checkin import CheckIn
from celery_graceful.requeue import Requeue
from celery_graceful.stage import Stage
from celery_graceful.starts import LONG

if TYPE_CHECKING:
    from celery_graceful.request import GracefulRequest

__all__ = ["Ledger"]


class _Leaving:
    """How many deliveries are on their way out: ended, and perhaps not acknowledged yet."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.count = 0

    def __enter__(self) -> None:
        with self.ledger.lock:
            self.count += 1

    def __exit__(self, *exc_info: object) -> None:
        with self.ledger.lock:
            self.count -= 1
        self.ledger.on_change()


class Ledger:
    """Everything that this worker holds, and what became of it since the drain began.

    Each delivery leaves by exactly one door: the stage of a request changes under one lock,
    and who changes it does what belongs to the change.
    """

    def __init__(self, requeue: Requeue) -> None:
        self.requeue = requeue
        self.forget = Forget(requeue.app)
        self.inquest = Inquest(requeue.app)
        #: With which it claims now, on Redis; set by the drain.
        self.claims: Claims | None = None
        self.lock = native.Lock()
        self.held: dict[int, GracefulRequest] = {}
        #: A message could not be given back: it is left to the broker.
        self.failed = False
        #: Give back what has not been started instead of starting it.
        self.releasing = False
        #: The worker is stopping: lost children are no failures of their tasks.
        self.stopping = False
        self.counts = dict.fromkeys(Stage, 0)
        self.leaving = _Leaving(self)
        self.on_change: Callable[[], None] = lambda: None
        #: Hands a request to the pool; set by the drain.
        self.process: Callable[[GracefulRequest], None] = lambda request: None
        #: Whether the pool lets pass by what has left; set by the drain.
        self.can_pass_by = False
        #: Whether the loop goes round; set by the drain.
        self.connected: Callable[[], bool] = lambda: True
        self.copies = Copies(self)
        self.handovers = Handovers(self)
        #: Tells a running task that it was revoked, if it can be told; set by the drain.
        self.revoke: Callable[[GracefulRequest], bool] = lambda request: False
        #: Something with a check-in has begun to run; set by the drain.
        self.on_check_in: Callable[[], None] = lambda: None

    def start_counting(self) -> None:
        """Count from now on: the drain begins."""
        self.counts = dict.fromkeys(Stage, 0)

    def open_requests(self) -> list[GracefulRequest]:
        """What has no outcome yet, oldest first."""
        return list(self.held.values())

    def active(self) -> list[GracefulRequest]:
        """What a pool has taken over, oldest first."""
        return [r for r in self.open_requests() if r.stage is not Stage.RECEIVED]

    def running_early(self) -> int:
        """How many run that were acknowledged at their start."""
        return sum(r.stage is Stage.RUNNING and r.acknowledged for r in self.open_requests())

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

    def close(self, request: GracefulRequest, stage: Stage, *, only: Iterable[Stage]) -> bool:
        """Let ``request`` leave as ``stage``, if it stands at one of ``only``."""
        with self.lock:
            if request.stage not in only:
                return False
            request.stage = stage
            self.held.pop(id(request), None)
            self.counts[stage] += 1
        if request.told_to_end and worker_state.board.value is not None:
            worker_state.board.value.forget_revoked(request.id)
        if request.note is not None and self.inquest.starts is not None:
            # The hard deadline has its own thread, and sends what it has to say itself.
            wake = stage is not Stage.GIVEN_UP
            later = stage is Stage.FINISHED and request.running_for >= LONG
            self.inquest.starts.end(request.id, request.note, later=later, wake=wake)
        self.on_change()
        return True

    def release_unstarted(self) -> list[GracefulRequest]:
        """Give everything back that was not started; returns it."""
        released = [
            request
            for request in self.open_requests()
            if self.close(request, Stage.RELEASED, only=(Stage.RECEIVED,))
        ]
        for request in released:
            let_go(request)
        if released:
            self.requeue.give_back(released)
        return released

    def not_handed_over(self, request: GracefulRequest) -> bool:
        """The pool has it no more, and has not begun with it. False: it has left already."""
        with self.lock:
            if request.stage is Stage.HANDED_OVER:
                request.stage = Stage.RECEIVED
            return request.stage is not Stage.RUNNING

    def forget_unstarted(self) -> None:
        """The broker connection is gone, and with it what was not started.

        Celery drops it in ``Consumer.on_close``; the broker, or who keeps the claims, delivers it
        again. Only what a pool's child has been handed as a claim will still start here.
        """
        kept = []
        with self.lock:
            for request in self.open_requests():
                if request.stage is Stage.HANDED_OVER and request.claim is not None:
                    kept.append(request)
                elif request.stage in (Stage.RECEIVED, Stage.HANDED_OVER):
                    request.stage = Stage.RELEASED
                    del self.held[id(request)]
                    if request.claim is not None:
                        request.claim.book.let_go_of(request.claim)
        for request in kept:
            state.task_reserved(request)

    def keep_claims(self) -> None:
        """Give back the claims that no delivery stands for: nobody here will run them."""
        if self.claims is not None:
            self.claims.let_go()

    def lose(self, worker: str) -> None:
        """The claims of an identity of this worker are others' now."""
        for request in self.open_requests():
            claim = request.claim
            # What was acknowledged at its start is nobody else's.
            if claim is not None and claim.worker == worker and not request.acknowledged:
                request.lost = True
                if request.stage is Stage.RECEIVED:
                    request.drop_lost()

    @property
    def runs_lost(self) -> bool:
        """Whether something runs whose claim was lost."""
        return any(request.lost for request in self.open_requests())
