"""Interruptions of tasks that are applied here and now: they have no queue to go back to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.result import EagerResult
from celery.states import FAILURE
from celery.utils import uuid

from celery_graceful.exceptions import Interrupted, ShutdownTimeLimit
from celery_graceful.phases import INTERRUPTED
from celery_graceful.runs.frames import hidden
from celery_graceful.runs.interruption import interrupt_in
from celery_graceful.runs.run import current
from celery_graceful.system.exception_chain import chain

__all__ = ["applied", "applied_plainly", "call_eagerly", "raise_if_interrupted"]


class _InterruptedResult(EagerResult):
    """Of a task that has no result, and will have none."""

    def get(self, *args: Any, propagate: bool = True, **kwargs: Any) -> Any:
        """The ``Interrupted``, raised or, without ``propagate``, returned."""
        super().get(*args, propagate=False, **kwargs)  # it may refuse to be asked here
        if propagate:
            raise self.result
        return self.result

    wait = get


def applied(apply: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``apply`` of a graceful task. What interrupts the run that it is part of goes on up.

    Returns:
        Its ``EagerResult``; in state ``INTERRUPTED`` where no run can go back to a queue.

    Raises:
        Interrupted: The run that it is part of has to stop.
        ShutdownTimeLimit: So has that of a plain task.
    """
    if len(args) < 5:  # the id is its fifth argument
        kwargs["task_id"] = kwargs.get("task_id") or uuid()
    task_id = args[4] if len(args) > 4 else kwargs["task_id"]
    try:
        return applied_plainly(apply, *args, **kwargs)
    except Interrupted as exc:
        run = current()
        if run is not None and run.graceful:
            raise
        return _InterruptedResult(task_id, exc, INTERRUPTED)


def applied_plainly(apply: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``apply`` of any task. The limit of the plain task that it is part of goes on up.

    Raises:
        ShutdownTimeLimit: That task has to stop.
    """
    result = apply(*args, **kwargs)
    run = current()
    may_be_told = run is not None and not run.graceful and result.state == FAILURE
    if may_be_told and any(isinstance(one, ShutdownTimeLimit) for one in chain(result.result)):
        raise result.result
    return result


@hidden
def call_eagerly(call: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
    """Call the code of an eager task.

    Raises:
        Interrupted: It has to stop, also where that came out of it as another exception.
        BaseException: What the task raised.
    """
    __tracebackhide__ = True
    try:
        return call(*args, **kwargs)
    except Exception as exc:
        raise_if_interrupted(exc)
        raise


@hidden
def raise_if_interrupted(exc: Exception) -> None:
    """``exc`` has ended an eager task; Celery would make a failure of it, whatever it is.

    Raises:
        Interrupted: The run that it is part of was interrupted.
    """
    __tracebackhide__ = True
    run = current()
    interrupt = interrupt_in(exc, run) if run is not None and run.graceful else None
    if interrupt is not None:
        raise Interrupted(interrupt) from exc
