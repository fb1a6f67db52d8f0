"""``GracefulTask``: the side of an interruption that runs with the task."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial, wraps
from types import MethodType
from typing import TYPE_CHECKING, Any

import celery
import celery.app.task
from celery.states import READY_STATES
from celery.utils.log import get_logger

from celery_graceful import signals
from celery_graceful.checkpoints import resume
from celery_graceful.claims.fence import (
    CLAIM,
    holds_claim,
    is_ours,
    mark_left,
    still_mine,
    was_taken_away,
)
from celery_graceful.exceptions import Interrupted, TaskInterrupted, TooManyInterruptions
from celery_graceful.phases import INTERRUPTED, Interrupt, InterruptReason
from celery_graceful.runs import interrupt as _interrupt
from celery_graceful.runs.frames import hidden, point, spared
from celery_graceful.runs.interrupt import named_if_slow
from celery_graceful.runs.interruption import cancelled, interrupt_in
from celery_graceful.runs.run import Run, current, execute, runs
from celery_graceful.system.describe import describe
from celery_graceful.system.process import Slot, emptied
from celery_graceful.task import successor, without_graceful
from celery_graceful.task.composed_base import base_of, bases
from celery_graceful.task.eager import applied, call_eagerly
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.worker_state import WorkerInterrupt

if TYPE_CHECKING:
    from celery_graceful.monitors import Monitor

__all__ = ["INTERRUPTED", "GracefulTask"]

logger = get_logger(__name__)

without_graceful.watch()


class GracefulTask(resume.Resumable, celery.Task):
    """A task that knows when its worker has to stop, and goes back to the queue if it must.

    Combine it with other task bases by ordinary inheritance, in either order.
    """

    abstract = True

    #: The message is acknowledged when the task has ended, so that it can go back whole.
    acks_late = True
    reject_on_worker_lost = True

    #: Where each run is reported to: a ``Monitor``, or its slug.
    monitor: Monitor | str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_decorated" in vars(cls):  # the class that ``app.task`` makes of a function
            cls.__bases__ = bases(cls.__bases__[0], base_of(vars(cls)["app"]))
        call = cls.__call__
        if not getattr(call, "_is_boundary", False):
            cls.__call__ = _boundary(call)  # type: ignore[method-assign]

    @hidden
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        request = self.request_stack.top or self.request  # a call less, most often
        return _deliver(self, request, spared(self, request, super().__call__), args, kwargs)

    __call__._is_boundary = True  # type: ignore[attr-defined]

    # -- what the task sees ----------------------------------------------------------

    @property
    def interrupted(self) -> bool:
        """Whether this task has to stop: a memory read, as cheap as an attribute."""
        return bool(worker_state.flag.value[0]) and _interrupt.interrupted()

    @property
    def interrupt(self) -> Interrupt | None:
        """Why this task has to stop and how long it has; ``None`` while it need not."""
        return _interrupt.current_interrupt() if worker_state.flag.value[0] else None

    def interruptible(self) -> AbstractContextManager[None]:
        """See ``celery_graceful.interruptible``."""
        return _interrupt.interruptible()

    def shield(self) -> AbstractContextManager[None]:
        """See ``celery_graceful.shield``."""
        return _interrupt.shield()

    def interrupt_callback(self, fn: Callable[[Interrupt], Any]) -> AbstractContextManager[None]:
        """``fn(interrupt)`` is called once when the interrupt comes, from another thread.

        See ``celery_graceful.interrupt_callback``.

        Args:
            fn: Gets the ``Interrupt``.

        Raises:
            TypeError: ``fn`` is no plain function.
        """
        return _interrupt.interrupt_callback(fn)

    def sleep(self, seconds: float) -> None:
        """Sleep, and raise ``Interrupted`` the moment an interrupt comes.

        See ``celery_graceful.sleep``.

        Args:
            seconds: For how long; 0 is a safe point alone.

        Raises:
            Interrupted: An interrupt is on, or came.
            TypeError, ValueError: ``seconds`` is no number of 0 or more.
        """
        _interrupt.sleep(seconds)

    def wait_for_interrupt(self, timeout: float | None = None) -> bool:
        """Wait until an interrupt comes, for up to ``timeout`` seconds.

        See ``celery_graceful.wait_for_interrupt``.

        Args:
            timeout: Seconds; ``None`` waits without limit.

        Returns:
            Whether an interrupt is on.

        Raises:
            TypeError, ValueError: ``timeout`` is no number of 0 or more.
            RuntimeError: There is no ``timeout``, and no worker in this process.
        """
        return _interrupt.wait_for_interrupt(timeout)

    def on_interrupted(self, interrupt: Interrupt) -> None:
        """Called when this task was interrupted, before its message goes back; or was revoked.

        Runs with the task, inside the time that is left. What it raises is logged. Not
        called when the hard deadline took the task away.

        Args:
            interrupt: Why, and how much time is left.
        """

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """As ``celery.Task.apply``, with the task's check-in.

        Returns:
            An ``EagerResult``; of a task that was interrupted in state ``INTERRUPTED``, whose
            ``get`` raises ``Interrupted``.

        Raises:
            Interrupted: It was applied by a task that has to stop: that one goes back.
        """
        from celery_graceful.monitors.tracer import eager

        return eager(self, partial(applied, super().apply), args, kwargs)

    # -- outcomes --------------------------------------------------------------------

    @hidden
    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """As ``celery.Task.retry``, but an interruption is no reason for a retry.

        Raises:
            Interrupted: The retry was asked for because of an interruption (as
                ``autoretry_for=(Exception,)`` does): the task goes back to the queue with no
                attempt counted.
        """
        __tracebackhide__ = True
        given = kwargs.get("exc") or (args[2] if len(args) > 2 else None)
        handled = sys.exc_info()[1]
        exc = given or handled
        run = current()
        for reason in (given, handled):
            if run is not None and isinstance(reason, BaseException):
                interrupt = interrupt_in(reason, run)
                if interrupt is not None:
                    if not run.graceful:  # applied by a plain task, which is told of its limit
                        raise reason
                    raise Interrupted(interrupt) from reason
        self._check_claim(exc)
        resume.failed(self.request)  # before the message for the next try can be delivered
        return successor.retry(self, super().retry, *args, **kwargs)

    @hidden
    def replace(self, *args: Any, **kwargs: Any) -> Any:
        """As ``celery.Task.replace``: what was replaced is not interrupted any more.

        Raises:
            Interrupted: Others took the worker for dead, and the task runs there.
        """
        __tracebackhide__ = True
        self._check_claim()
        resume.failed(self.request)  # before what replaces it can begin
        return successor.replace(self, super().replace, *args, **kwargs)

    @hidden
    def add_to_chord(self, *args: Any, **kwargs: Any) -> Any:
        """As ``celery.Task.add_to_chord``: what the chord waits for is sent.

        Raises:
            Interrupted: As ``replace``.
        """
        __tracebackhide__ = True
        self._check_claim()
        return successor.add_to_chord(self, super().add_to_chord, *args, **kwargs)

    def _check_claim(self, cause: BaseException | None = None) -> None:
        if not holds_claim(self):
            raise Interrupted(WorkerInterrupt(InterruptReason.LEASE_LOST, math.inf)) from cause


def _boundary(call: Callable[..., Any]) -> Callable[..., Any]:
    """Put the task's boundary around a ``__call__`` that somebody else wrote."""

    @hidden
    @wraps(call)
    def __call__(self: GracefulTask, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return _deliver(self, self.request, MethodType(call, self), args, kwargs)

    __call__._is_boundary = True  # type: ignore[attr-defined]
    return __call__


#: Set in workers whose pool has no soft time limits of its own: the worker-wide limit in
#: seconds, 0 for none. ``None`` where the pool has its own.
bridged_soft_limit: Slot[float | None] = Slot("soft limit", lambda: None, in_fork=emptied)

_NO_LIMITS = None, None


@hidden
def _deliver(
    task: GracefulTask,
    request: Any,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run one delivery of ``task`` and turn an interruption into Celery's ``Ignore``."""
    # Each run of each task comes here: few calls.
    __tracebackhide__ = True
    if request.is_eager:
        return call_eagerly(call, args, kwargs)
    board = worker_state.board.value
    if board is None or threading.get_ident() in runs or request.called_directly:
        return call(*args, **kwargs)
    if worker_state.flag.value[0] and board.interrupted:
        # It arrived while the worker was already stopping: none of its code has to run.
        if task.track_started:  # Celery has stored that it has
            _store(task, request, str(board.reason))
        mark_left(request)
        raise TaskInterrupted(str(board.reason), started=False)
    held = getattr(request, CLAIM, None)
    # Of what is acknowledged early, whether it was yet says nothing: is any of that worker's held?
    claim = held if task.acks_late else None
    if not (
        held is None
        or board.surely_holds(held)
        or still_mine(task, claim or held.rpartition("/")[0] + "/")
    ):
        raise TaskInterrupted(str(InterruptReason.LEASE_LOST), started=False)
    soft, bridged = None, bridged_soft_limit.value
    if bridged is not None:
        soft = (request.timelimit or _NO_LIMITS)[1] or task.soft_time_limit or bridged or None
    run = Run(request.id, task.name, graceful=True, soft_time_limit=soft, claim=claim)
    try:
        result = execute(run, resume.body_of(task, request, run, call), args, kwargs)
        if run.raised and run in cancelled and not run.shielded:
            # A coroutine has ended by that, and nobody heard of it; no retry has been sent.
            raise Interrupted(run.interrupt)
        is_sure = not board.taken_away and (claim is None or board.surely_holds(claim))
        if not is_sure and not is_ours(task, request, claim):
            raise Interrupted(WorkerInterrupt(InterruptReason.LEASE_LOST, math.inf))
        resume.ended(request)
        return result
    except BaseException as exc:
        interrupt = interrupt_in(exc, run)
        if isinstance(exc, Interrupted) and exc.message:
            logger.info("%s[%s] has interrupted itself: %s", task.name, request.id, exc.message)
        if was_taken_away(request):
            outcome = TaskInterrupted(str(InterruptReason.SHUTDOWN))
        elif interrupt is not None:
            outcome = _interruption(task, request, run, interrupt, exc)
        elif not isinstance(exc, Exception):
            raise
        elif claim is not None and not still_mine(task, claim):
            outcome = TaskInterrupted(str(InterruptReason.LEASE_LOST))
        else:
            resume.failed(request)
            raise
    if isinstance(outcome, TaskInterrupted):
        mark_left(request)
    raise outcome


def _interruption(
    task: GracefulTask, request: Any, run: Run, interrupt: Interrupt, exc: BaseException
) -> TaskInterrupted | TooManyInterruptions:
    resume.left(request)
    try:
        with named_if_slow(f"on_interrupted of {task.name}[{request.id}]"):
            task.on_interrupted(interrupt)
    except Exception:
        logger.exception("on_interrupted of %s[%s] raised", task.name, request.id)
    if interrupt.reason is InterruptReason.REVOKED:  # it ends here; the main process tells
        return TaskInterrupted(str(interrupt.reason))
    too_many = resume.interrupted(task, run, interrupt)
    if too_many is not None:
        return too_many
    if interrupt.reason is not InterruptReason.LEASE_LOST:  # else another run is what counts
        record(task, request, str(interrupt.reason), given_up=False)
    return TaskInterrupted(str(interrupt.reason), where=resume.place(request) or point(exc))


def record(task: celery.Task, request: Any, reason: str, *, given_up: bool) -> None:
    """Tell the result backend and the listeners that a task was interrupted.

    Args:
        task: The task.
        request: Its context (``celery.app.task.Context``).
        reason: Value of the ``InterruptReason``.
        given_up: Whether the hard deadline took the task away.
    """
    if not (given_up and _has_ended(task, request)):
        _store(task, request, reason)
    with named_if_slow(f"task_interrupted receivers for {task.name}[{request.id}]"):
        signals.task_interrupted.send(
            sender=task,
            task_id=request.id,
            args=request.args,
            kwargs=request.kwargs,
            reason=reason,
            given_up=given_up,
        )


def _store(task: celery.Task, request: Any, reason: str) -> None:
    if not _ignores_result(task, request):
        try:
            task.backend.store_result(request.id, {"reason": reason}, INTERRUPTED, request=request)
        except Exception as exc:
            logger.warning(
                "Could not store state %s of %s[%s]: %s",
                INTERRUPTED,
                task.name,
                request.id,
                describe(exc),
            )


def _has_ended(task: celery.Task, request: Any) -> bool:
    """Whether its result is there, though the worker has not heard that it has one."""
    if _ignores_result(task, request):
        return False
    try:
        return task.backend.get_task_meta(request.id, cache=False)["status"] in READY_STATES
    except Exception:  # of one that is away, or cannot be asked: what is stored then says it
        return False


def _ignores_result(task: celery.Task, request: Any) -> bool:
    """As Celery decides for results: the request's word counts, if there is one."""
    actual = getattr(celery.app.task, "get_actual_ignore_result", None)
    if actual is not None:
        return bool(actual(task, request))
    return bool(task.ignore_result or request.ignore_result)  # Celery before 5.7
