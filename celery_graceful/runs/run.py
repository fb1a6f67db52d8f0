"""One running task, and when an exception may be raised in it from outside.

An exception may land only inside the *window* of a run: while the task's own code runs and
no shield is held. Whoever raises from outside (a signal handler, another thread, the hub)
asks ``take_due`` first, under the lock of the run; the task closes the window under the same
lock. So no exception lands after the task has ended or in the worker's own code.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import starmap
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

from celery_graceful.exceptions import Interrupted, ShutdownTimeLimit
from celery_graceful.phases import Interrupt, InterruptReason, Phase
from celery_graceful.runs.frames import hidden
from celery_graceful.runs.injected import Tie, landing, make
from celery_graceful.runs.lock_steps import is_at_lock
from celery_graceful.system import native
from celery_graceful.system.exception_chain import is_in_hand
from celery_graceful.system.process import Slot, emptied, kept
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.worker_state import WorkerInterrupt

__all__ = ["Run", "current", "execute", "make", "of_context", "runs"]

#: What is raised from outside.
FROM_OUTSIDE = (Interrupted, SoftTimeLimitExceeded)

#: The runs of this process, by the identity of their thread or greenlet.
runs: dict[int, Run] = {}

#: What a run has to be thrown into; set where tasks run on greenlets.
get_greenlet: Slot[Callable[[], Any]] = Slot("greenlet", lambda: type(None), in_fork=kept)

#: Makes its lock; in a worker without asking each time of which kind it has to be.
make_lock: Slot[Callable[[], Any]] = Slot("lock", lambda: native.Lock, in_fork=kept)

#: The run that the caller, a coroutine in another thread too, is part of; or one that is done.
of_context: ContextVar[Run | None] = ContextVar("celery_graceful_run", default=None)

#: Called when a run with a soft time limit of ours begins: somebody has to watch the clock.
on_limited: Slot[Callable[[], None]] = Slot("limits", lambda: lambda: None, in_fork=emptied)


def current() -> Run | None:
    """The run that the caller is part of, ``None`` outside of a task and in its helpers."""
    return runs.get(threading.get_ident())


class Run:
    """The life of one delivery in the process that executes it.

    Args:
        task_id: Id of the task.
        name: Name of the task.
        graceful: Whether the task turns ``Interrupted`` into an outcome. In other tasks only
            ``ShutdownTimeLimit`` is raised.
        soft_time_limit: Seconds after which ``SoftTimeLimitExceeded`` is due; for pools in
            which Celery has no soft limit of its own.
        claim: The claim of its message, on Redis.
    """

    done = False
    #: An ``interruptible`` block is open and has not been interrupted yet.
    interruptible = False
    #: An interrupt has been raised in this run.
    raised = False
    _raised_before = False
    #: Loops of ``iterate`` that are under way.
    loops = 0
    soft_limit_at: float | None = None
    soft_limit_hit = False
    _left_to_loop = _look_again = _window = False
    _shields = 0
    _made: frozenset[type[BaseException]] = frozenset()
    #: The ``ShutdownTimeLimit`` that was raised, until it has been looked for again.
    _limit: weakref.ref[BaseException] | None = None
    _clear_async: Callable[[], None] = staticmethod(lambda: None)
    #: Coroutines that are cancelled, instead of an exception raised wherever they stand.
    ties: tuple[Tie, ...] = ()
    #: The asynchronous exception that is on its way, if any.
    _sent: set[type[BaseException]] | frozenset[type[BaseException]] = frozenset()

    def __init__(
        self,
        task_id: str,
        name: str,
        *,
        graceful: bool,
        soft_time_limit: float | None = None,
        claim: str | None = None,
    ) -> None:
        self._claim = claim
        self.task_id = task_id
        self.name = name
        self.graceful = graceful
        self.started_at = time.monotonic()
        self.ident = threading.get_ident()
        self.greenlet = get_greenlet.value()
        if soft_time_limit is not None:
            self.soft_limit_at = self.started_at + soft_time_limit
        self._lock = make_lock.value()

    # -- asked by whoever delivers -------------------------------------------------

    def take_due(self, *, blocking: bool = True) -> type[BaseException] | None:
        """What has to be raised in this run now, if anything; it counts as raised.

        Args:
            blocking: False in a signal handler, which may have interrupted the very code
                that holds the lock. That code looks for itself before it goes on.
        """
        if blocking:
            with self._lock:  # between its acquire and its body no asynchronous exception lands
                due = self._take() if self._may_raise() else None
        elif self._lock.acquire(False):
            try:
                due = self._take() if self._may_raise() else None
            finally:
                self._lock.release()
        else:
            self._look_again = True
            return None
        if self._look_again:
            self._look_again = False
            return self.take_due() or due
        return due

    def send_async(self, send: Callable[[int, Any], None]) -> bool:
        """Raise what is due through ``send(ident, exception class)``, from another thread.

        False: its thread stands where nothing may land, and leaves that soon.
        """
        with self._lock:
            due = None
            if self._may_raise():
                if is_at_lock(sys._current_frames().get(self.ident)):
                    return False
                due = self._take()
            if due is not None:
                # In place of one that is still on its way, if any: that was the weaker one.
                self._sent = {due}
                self._clear_async = lambda: send(self.ident, None)
                send(self.ident, landing(due, current))
        return True

    def _may_raise(self) -> bool:
        ties = self.ties if self._window else ()
        # A loop that has not come to it since the soft deadline: code that computes keeps it.
        board = worker_state.board.value
        late = board is not None and time.monotonic() >= board.limit_again_at > 0
        stuck = late and any(tie.asked for tie in ties)
        heard = [tie for tie in ties if tie.ring()]
        return self._window and (not heard or stuck)

    def _take(self) -> type[BaseException] | None:
        due: type[BaseException] | None = None
        if self.soft_limit_hit and SoftTimeLimitExceeded not in self._made:
            due = SoftTimeLimitExceeded
        elif (interrupt := self.interrupt) is not None:
            # Who was revoked need not wait for a place that the task named safe.
            at_once = interrupt.reason is InterruptReason.REVOKED and not self.raised
            if interrupt.phase >= Phase.SOFT and self._limit_is_due():
                due = ShutdownTimeLimit
            elif self.graceful and (self.interruptible or at_once):
                due = Interrupted
            if due is not None:
                # Either of them leaves the block; one that lands at the very end of it must
                # not leave it open.
                self.interruptible = False
                self._raised_before, self.raised = self.raised, True
        if due is not None:
            self._made |= {due}
        return due

    def _limit_is_due(self) -> bool:
        if ShutdownTimeLimit not in self._made:
            return True
        board, limit = worker_state.board.value, self._limit
        if limit is None or board is None or time.monotonic() < board.limit_again_at:
            return False
        # Swallowed, by an ``except Exception`` in a loop for instance: once more. A task that is
        # still dealing with it is left alone.
        self._limit = None
        return not is_in_hand(limit, self.ident if self.greenlet is None else None)

    def made(self, exc: BaseException) -> None:
        """It is about to be raised in this run."""
        board = worker_state.board.value
        if isinstance(exc, ShutdownTimeLimit) and self.graceful and board is not None:
            again = time.monotonic() < board.limit_again_at
            self._limit = weakref.ref(exc) if again else None

    def landed(self, cls: type[BaseException]) -> None:
        """An asynchronous exception has arrived in its thread; another may be on its way."""
        sent = self._sent
        if isinstance(sent, set):
            sent.discard(cls)

    # -- coroutines ----------------------------------------------------------------

    def tie(self, tie: Tie) -> None:
        """From now on nothing is raised from outside: the coroutine is rung for."""
        with self._lock:
            self.ties = (*self.ties, tie)
            self._take_back()

    def untie(self, tie: Tie) -> None:
        """The coroutine goes on as any other code."""
        with self._lock:
            self.ties = tuple(one for one in self.ties if one is not tie)

    def due_for(self, told: set[type[BaseException]], *, anywhere: bool) -> Any:
        """The exception class that a coroutine has to end by, if any.

        Args:
            told: What it was told before; what is due is added.
            anywhere: It may be interrupted wherever it waits, and not by limits alone.
        """
        with self._lock:
            due: type[BaseException] | None = None
            interrupt = self.interrupt if self._window else None
            if self._window and self.soft_limit_hit and SoftTimeLimitExceeded not in told:
                due = SoftTimeLimitExceeded
            elif interrupt is not None and ShutdownTimeLimit not in told:
                anywhere = anywhere or interrupt.reason is InterruptReason.REVOKED
                if interrupt.phase >= Phase.SOFT:
                    due = ShutdownTimeLimit
                elif self.graceful and anywhere and Interrupted not in told:
                    due = Interrupted
            if due is not None:
                told.add(due)
                self._made |= {due}
                self.raised = True
        return due

    # -- done by the task itself ---------------------------------------------------

    def raise_due(self) -> None:
        """Raise what is due, in the run's own thread."""
        due = self.take_due()
        if due is not None:
            raise make(due, self)

    def _open_window(self) -> None:
        with self._lock:
            self._window = not self.done and not self._shields

    def _close_window(self) -> None:
        with self._lock:
            self._window = False
            if self._sent:
                self._take_back()

    def _take_back(self) -> None:
        """What is on its way and not here yet shall not land: it is due again later."""
        sent, self._sent = self._sent, frozenset()
        if sent:
            self._clear_async()
            self._made -= sent
            self.raised = self._raised_before
            if Interrupted in sent:
                self.interruptible = True

    def enter_block(self) -> None:
        """An ``interruptible`` block begins.

        Raises:
            Interrupted, ShutdownTimeLimit, SoftTimeLimitExceeded: One of them is due.
        """
        with self._lock:  # what is on its way leaves this block, too
            self.interruptible = not self._sent
        self.raise_due()

    def leave_block(self, outer: bool) -> None:
        """An ``interruptible`` block ends, inside of an ``outer`` one or not.

        Raises:
            Interrupted: It was on its way, and is due in the outer block as well.
            ShutdownTimeLimit, SoftTimeLimitExceeded: It came just now.
        """
        with self._lock:
            on_its_way = Interrupted in self._sent
            if on_its_way:  # it must not land out there
                self._take_back()
            # What was raised inside is on its way through the outer block, too.
            self.interruptible = outer and self.interruptible
        if on_its_way or self._look_again:
            self.raise_due()

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Nothing is raised inside; what came meanwhile is raised at the outermost exit."""
        raised = self.raised
        self._hold()
        try:
            yield
        finally:
            self._shields -= 1
            if not self._shields:
                self._open_window()
        if not self._shields:
            self.raise_due()
            if self.graceful and self.interrupt and not raised and not self.raised:
                if self.loops and not self._left_to_loop:
                    # The item in hand is done now, most often: the loop notes that, and then
                    # raises. If another shield of the same item comes first, that one does.
                    self._left_to_loop = True
                else:
                    self.interrupt_here()

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Nothing is raised inside; at the exit, only what would have been raised anyway."""
        self._hold()
        try:
            yield
        finally:
            self._shields -= 1
            if not self._shields:
                self._open_window()
        if not self._shields:
            self.raise_due()

    def settle(self) -> None:
        """How the task ends has been sent: nothing is raised in it any more."""
        self._hold()

    def _hold(self) -> None:
        try:
            self._close_window()
        except FROM_OUTSIDE:  # the last one that could land
            self._open_window()
            self.raise_due()  # what came meanwhile
            raise
        self._shields += 1

    @property
    def has_lost_claim(self) -> bool:
        """Whether others took the worker for dead, and have its message."""
        board = worker_state.board.value
        return bool(
            self._claim
            and board is not None
            and board.has_lost
            and worker_state.holds(self._claim.rpartition("/")[0]) is False
        )

    @property
    def interrupt(self) -> Interrupt | None:
        """Why this run has to stop, if it has to."""
        board = worker_state.board.value
        if board is None:
            return None
        revoked_until = board.revoked_until(self.task_id)
        if revoked_until is not None:  # comes first: it does not go back to the queue
            hard = board.hard_at if board.interrupted else math.inf
            return WorkerInterrupt(InterruptReason.REVOKED, min(revoked_until, hard))
        if not board.interrupted and self.has_lost_claim:
            return WorkerInterrupt(InterruptReason.LEASE_LOST, math.inf)
        return worker_state.worker_interrupt()

    @property
    def was_made(self) -> frozenset[type[BaseException]]:
        """What has been raised in it from outside."""
        return self._made

    @property
    def looks_later(self) -> bool:
        """A signal handler came in between, and could not look."""
        return self._look_again

    @property
    def shielded(self) -> bool:
        return self._shields > 0

    def interrupt_here(self) -> None:
        """Raise ``Interrupted``: the caller stands at a safe point."""
        with self._lock:  # it takes the place of one that is on its way, or would be soon
            if Interrupted in self._sent:
                self._take_back()
            self.interruptible = False
            self.raised = True
        if self._look_again:
            self.raise_due()
        raise make(Interrupted, self)

    def _end(self) -> None:
        self.done = True
        with self._lock:  # as ``_close_window``
            self._window = False
            if self._sent:
                self._take_back()
        runs.pop(self.ident, None)
        if self.greenlet is not None:  # no circle with it: it has a context of its own
            of_context.set(None)


@hidden
def execute(run: Run, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
    """Call ``call`` as the body of ``run``.

    Raises:
        Interrupted, ShutdownTimeLimit, SoftTimeLimitExceeded: One of them was raised from
            outside, and the task did not catch it.
        BaseException: What the task raised.
    """
    __tracebackhide__ = True
    # A call between bytecodes would leave a moment between the end of the task and the
    # storing of its result, in which an exception could still land and undo a task that is
    # done. In C (starmap into a list) there is no such moment.
    box: list[Any] = []
    failure: BaseException | None = None
    try:
        try:
            run._window = True  # nobody else knows of it yet
            runs[run.ident] = run
            of_context.set(run)
            if run.soft_limit_at is not None:
                on_limited.value()
            if worker_state.flag.value[0]:  # what came before there was anybody to tell
                run.raise_due()
            box.extend(starmap(partial(call, **kwargs) if kwargs else call, (args,)))
        except BaseException as exc:
            failure = exc
        run._end()
    except FROM_OUTSIDE as exc:  # the last one that could land
        # No loop, no ``finally``: either begins with an instruction, of its own, at which
        # CPython 3.10 raises what is pending, before it is inside of the ``try`` again.
        failure = failure or exc
        run._end()
    if box:
        return box[0]
    assert failure is not None
    try:
        raise failure
    finally:
        del failure  # no circle of exception, traceback and frame
