"""What a task sends in its own place: that and the task's end are one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.exceptions import Ignore, Reject, Retry

from celery_graceful.runs.frames import hidden
from celery_graceful.runs.run import current

__all__ = ["send"]


@hidden
def send(task: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``retry``, ``replace`` or ``add_to_chord`` of a task; nothing is raised in it meanwhile.

    An interrupt between the sending and the exception that tells of it would give the task back
    as well, and both would run. What comes later comes too late, for the same reason.
    """
    __tracebackhide__ = True
    run = current()
    if run is None or task.request.called_directly or task.request.is_eager:
        return call(*args, **kwargs)  # nothing is sent, or not in the place of this run
    with run.undisturbed():
        try:
            sent = call(*args, **kwargs)
        except (Ignore, Reject, Retry):
            run.settle()
            raise
        if isinstance(sent, Retry):  # which the task raises by itself, or not
            run.settle()
        return sent
