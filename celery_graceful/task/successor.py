"""What a task sends in its own place: that and the task's end are one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from celery.exceptions import Ignore, Reject, Retry

from celery_graceful.claims.fence import DELIVERY
from celery_graceful.runs.frames import hidden
from celery_graceful.runs.run import current
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.successors import Sent

__all__ = ["add_to_chord", "replace", "retry"]

#: By what it is told that it was sent; a retry may be left by an ``Ignore`` of the user's.
_TOLD_BY = {Sent.RETRY: Retry, Sent.REPLACEMENT: Ignore}


@hidden
def _send(
    sends: Sent | None, task: Any, call: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    """Call what sends it; nothing is raised in the task meanwhile.

    An interrupt between the sending and the exception that tells of it would give the task back
    as well, and both would run. What comes later comes too late, for the same reason; so does the
    end of its process, or of the worker's grace, of which the main process is told.
    """
    __tracebackhide__ = True
    run = current()
    if run is None or task.request.called_directly or task.request.is_eager:
        return call(*args, **kwargs)  # nothing is sent, or not in the place of this run
    with run.undisturbed():
        try:
            sent = call(*args, **kwargs)
        except (Ignore, Reject, Retry) as exc:
            if sends is not None and isinstance(exc, _TOLD_BY[sends]):
                _note(task, sends)
            run.settle()
            raise
        if isinstance(sent, Retry):  # which the task raises by itself, or not
            _note(task, Sent.RETRY)
            run.settle()
        return sent


#: Each calls the method of that name of a task; ``add_to_chord`` does not end the run.
retry = partial(_send, Sent.RETRY)
replace = partial(_send, Sent.REPLACEMENT)
add_to_chord = partial(_send, None)


def _note(task: Any, sent: Sent) -> None:
    board, delivery = worker_state.board.value, getattr(task.request, DELIVERY, None)
    if board is not None and delivery is not None:
        board.successors.note(delivery, sent)
