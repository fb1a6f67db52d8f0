"""What all pools have in common, and what those share that run tasks in the main process."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial, wraps
from types import FrameType
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.app.trace import fast_trace_task, trace_task_ret

from celery_graceful.claims.fence import holds_claim, was_taken_away
from celery_graceful.deliveries.custom_strategies import CustomStrategies
from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.request import GracefulRequest
from celery_graceful.exceptions import TaskInterrupted
from celery_graceful.messages.decoding import unseen_of
from celery_graceful.phases import InterruptReason
from celery_graceful.pools.wake_signal import AGAIN, LONGER
from celery_graceful.runs import interrupt
from celery_graceful.runs.frames import hidden
from celery_graceful.runs.run import Run, current, execute, runs
from celery_graceful.runs.stacks import stack_of
from celery_graceful.system.garbage import freeze_once
from celery_graceful.system.process import Owner
from celery_graceful.task import base as _task
from celery_graceful.task import successor
from celery_graceful.task.eager import applied_plainly, call_eagerly, raise_if_interrupted
from celery_graceful.timeline import worker_state

__all__ = ["Adapter", "InProcessAdapter", "watch_plain_task"]


class Adapter:
    """The seam between the drain and a pool.

    Args:
        worker: Celery's ``WorkController``.
        ledger: What the worker holds.
        custom_strategies: Its calls of the pool that are not of one delivery each.
        ring_loop: Makes the loop come to its part of the drain.
        ring_watch: Makes the watch ask ``again_at``.
        read_pending: Takes what the broker has sent already. In the loop, or in its place.
    """

    #: Tasks run in the main process, where one of them may hold the GIL for ever.
    in_process = False
    #: What the pool was handed can be taken back until it begins.
    can_pass_by = False
    #: A task may keep the loop from going round, which is no sign that the worker hangs.
    may_keep_loop = False
    #: It runs one task, whatever concurrency it was given.
    one_at_a_time = False
    #: When those who were told by ``notify``, and have not heard, are told again; on the monotonic
    #: clock.
    again_at = math.inf
    _pause = AGAIN

    def __init__(
        self,
        worker: Any,
        ledger: Ledger,
        custom_strategies: CustomStrategies,
        *,
        ring_loop: Callable[[], None],
        ring_watch: Callable[[], None],
        read_pending: Callable[[], None],
    ) -> None:
        self.worker = worker
        self.ledger = ledger
        self.custom_strategies = custom_strategies
        self.ring_loop = ring_loop
        self.ring_watch = ring_watch
        self.read_pending = read_pending

    @staticmethod
    def spawns(worker: Any) -> bool:
        """Whether children are started fresh."""
        return False

    def prepare(self, owner: Owner) -> None:
        """Before the pool starts, in the main thread.

        Args:
            owner: Of what the process has from this worker.
        """

    def adopt(self, task: Any) -> None:
        """A task of the app, before its strategy and its tracer are made."""

    def keep_jobs(self) -> None:
        """Keep what the pool was handed when the broker connection is lost, where its end counts:
        of claims, and of RabbitMQ's deliveries, whose copies come back. Before the pool starts.
        """

    def hear_stop(self) -> None:
        """A stop was asked for; ``notify`` follows. Safe in a signal handler; in any thread."""

    def notify(self) -> None:
        """Let running tasks see the phase: raise what is due. From any thread."""

    def tell_again(self) -> None:
        """Who was just beginning to wait has not heard: once more. Called by the watch."""
        self.again_at = math.inf  # first: another thread may be telling them something new
        if self.tell_deaf():
            self._pause *= LONGER
            self.again_at = min(self.again_at, time.monotonic() + self._pause)

    def tell_deaf(self) -> bool:
        """Signal those who have not heard; whether there are any."""
        return False

    def _listen(self) -> None:
        """They were told, and it will be looked whether they have heard."""
        self._pause = AGAIN
        self.again_at = time.monotonic() + AGAIN
        self.ring_watch()

    def on_loop(self) -> None:
        """The loop was rung. Called by the loop."""

    def take_back(self) -> None:
        """Take back what the pool was handed and has not handed on. Called by the loop."""

    def quiesce(self) -> None:
        """Consumers are cancelled, unstarted messages are back. Called by the loop."""

    def resume(self) -> None:
        """It fetches again after that. Called by the loop."""

    def stuck_loop(self, quiesce: Callable[[], None]) -> None:
        """The loop has not come to its part of the drain. Called by the watch."""

    def stack_of(self, request: HeldMessage, until: float) -> str:
        """Where one stands that runs; empty if that cannot be said ``until`` then.

        Called in a thread of its own, never at the same time as itself.
        """
        return ""

    def take_away(self, requests: Sequence[HeldMessage]) -> None:
        """The hard deadline has passed: end these, as far as the pool can."""

    def end_process(self, request: HeldMessage, signum: int) -> None:
        """End the process that runs this one; others go on. Called by the watch."""

    def leave(self) -> None:
        """The process is about to be left by force."""


def _frame_of(request: HeldMessage) -> FrameType | None:
    """The innermost frame of the thread that runs a task without a run; it is looked for."""
    for innermost in sys._current_frames().values():
        frame: FrameType | None = innermost
        while frame is not None:
            if frame.f_code.co_name == _BODY and frame.f_locals.get("request") is request:
                return innermost
            frame = frame.f_back
    return None


#: The function that has a pool run a request.
_BODY = "graceful_body"


#: Functions of Celery's that a pool is handed, and that decode the body again.
_TRACES = (fast_trace_task, trace_task_ret)


class Handed:
    """One request that a pool of this process has been handed.

    Args:
        adapter: Of the pool.
        request: It passes through the pool without being started if it was given back.
        target: What the pool is to run.
        callback: To be called with the result.
        accept: To be called when it begins.
    """

    __slots__ = ("_accept", "_adapter", "_begun", "_callback", "_target", "request")

    def __init__(
        self,
        adapter: InProcessAdapter,
        request: GracefulRequest,
        target: Callable[..., Any],
        callback: Callable[..., Any],
        accept: Callable[..., Any],
    ) -> None:
        self._adapter, self.request, self._target = adapter, request, target
        self._callback, self._accept = callback, accept
        self._begun = False

    def args(self, args: Any) -> Any:
        """Arguments for the target, with a body that need not be decoded again, if that may be."""
        if self._target in _TRACES and args[4]:
            body = unseen_of(self.request.message, args[3])
            if body is not None:
                return (*args[:3], body, None, None)
        return args

    def accepted(self, *args: Any) -> None:
        """The pool begins."""
        request = self.request
        self._begun = request.begin()
        if self._begun:
            if self._adapter.blocks_loop and not request.task.acks_late:
                request.ack_at_once()
            self._accept(*args)

    def graceful_body(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        request = self.request  # who looks for the thread of this request finds it here, by name
        try:
            return self._adapter.run_body(self._target, args, kwargs) if self._begun else None
        except Exception:  # out of Celery's own code: the pool would tell nobody
            return ExceptionInfo()
        finally:
            del request

    def ended(self, result: Any) -> None:
        """It has ended, unless it was never begun."""
        if not self._begun:
            return
        if isinstance(result, ExceptionInfo):
            self.request.on_left(result)
        else:
            self._callback(result)


class InProcessAdapter(Adapter):
    """For pools whose tasks run in the main process."""

    in_process = True
    can_pass_by = True
    #: The loop waits for the task that runs.
    blocks_loop = False

    def prepare(self, owner: Owner) -> None:
        owner.fill(_task.bridged_soft_limit, self.worker.soft_time_limit or 0.0)
        pool = self.worker.pool
        pool.apply_async = self._guarded(pool.apply_async)
        freeze_once()

    def adopt(self, task: Any) -> None:
        watch_plain_task(task)

    def hear_stop(self) -> None:
        interrupt.wake()

    def notify(self) -> None:
        interrupt.wake()

    def stack_of(self, request: HeldMessage, until: float) -> str:
        run = next((one for one in list(runs.values()) if one.task_id == request.id), None)
        return stack_of(_frame_of(request) if run is None else self.frame_of(run))

    def frame_of(self, run: Run) -> FrameType | None:
        """The innermost frame of a run, in whatever it runs in."""
        return sys._current_frames().get(run.ident)

    def run_body(self, body: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a task's trace function."""
        return body(*args, **kwargs)

    def hand_over(
        self, apply_async: Callable[..., Any], handed: Handed, args: Any, kwargs: Any, options: Any
    ) -> Any:
        """Have the pool run a request."""
        options.update(accept_callback=handed.accepted, callback=handed.ended)
        return apply_async(handed.graceful_body, handed.args(args), kwargs, **options)

    def _guarded(self, apply_async: Callable[..., Any]) -> Callable[..., Any]:
        """Let a request that was given back pass through the pool without being started."""

        @wraps(apply_async)
        def guarded(
            target: Callable[..., Any], args: Any = None, kwargs: Any = None, **options: Any
        ) -> Any:
            callback = options.get("callback")
            request = getattr(callback, "__self__", None)
            if callback is None or not isinstance(request, GracefulRequest):
                around = self.custom_strategies.around
                return around(apply_async, target, args, kwargs, here=self.run_body, **options)
            handed = Handed(self, request, target, callback, options.pop("accept_callback"))
            return self.hand_over(apply_async, handed, args, kwargs, options)

        return guarded


def _fenced(task: Any, run: Callable[..., Any]) -> Callable[..., Any]:
    """``run`` of a plain task, whose end counts only if its claim is still held."""

    @hidden
    @wraps(run)
    def fenced(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        try:
            result = run(*args, **kwargs)
        except Exception as exc:
            if task.request.is_eager:
                raise_if_interrupted(exc)
            if not holds_claim(task):
                raise TaskInterrupted(str(InterruptReason.LEASE_LOST)) from None
            raise
        if not holds_claim(task):
            raise TaskInterrupted(str(InterruptReason.LEASE_LOST))
        return result

    fenced._watched = True  # type: ignore[attr-defined]
    return fenced


def watch_plain_task(task: Any) -> bool:
    """Let ``ShutdownTimeLimit`` reach a task that is no ``GracefulTask``.

    Only where that beats what else would happen: the message was acknowledged early, so that
    being taken away at the hard deadline is the worse end. Others are fenced. Applied by another
    task, either stops with that one. Returns whether ``task.run`` was wrapped (a tracer that was
    built before has to be built again).
    """
    if isinstance(task, _task.GracefulTask) or hasattr(task.run, "_watched"):
        return False
    run = task.run
    task.apply = partial(applied_plainly, task.apply)
    if task.acks_late:
        task.run = _fenced(task, run)
        return True

    @hidden
    @wraps(run)
    def watched(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        request = task.request
        if request.is_eager:
            return call_eagerly(run, args, kwargs)
        if worker_state.board.value is None or current() is not None or request.called_directly:
            return run(*args, **kwargs)
        try:
            result = execute(Run(request.id, task.name, graceful=False), run, args, kwargs)
        except Exception:
            if was_taken_away(request):
                raise TaskInterrupted(str(InterruptReason.SHUTDOWN)) from None
            raise
        if was_taken_away(request):
            raise TaskInterrupted(str(InterruptReason.SHUTDOWN))
        return result

    watched._watched = True  # type: ignore[attr-defined]
    task.run = watched
    for name in ("retry", "replace", "add_to_chord"):
        setattr(task, name, partial(getattr(successor, name), task, getattr(task, name)))
    return True
