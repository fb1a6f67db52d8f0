"""Interruptions of tasks that are applied here and now: there is no queue to go back to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.result import EagerResult
from celery.utils import uuid

from celery_graceful.exceptions import Interrupted
from celery_graceful.runs.frames import hidden
from celery_graceful.runs.interruption import interrupt_in
from celery_graceful.runs.run import current

__all__ = ["INTERRUPTED", "applied", "call_eagerly"]

#: State of an interrupted task in the result backend. It is not a ready state: whoever waits
#: for the result goes on waiting.
INTERRUPTED = "INTERRUPTED"


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
    """``apply`` of a task, out of which no ``Interrupted`` comes."""
    if len(args) < 5:  # the id is its fifth argument
        kwargs["task_id"] = kwargs.get("task_id") or uuid()
    task_id = args[4] if len(args) > 4 else kwargs["task_id"]
    try:
        return apply(*args, **kwargs)
    except Interrupted as exc:
        return _InterruptedResult(task_id, exc, INTERRUPTED)


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
        run = current()
        interrupt = None if run is None else interrupt_in(exc, run)
        if interrupt is None:
            raise
        raise Interrupted(interrupt) from exc
