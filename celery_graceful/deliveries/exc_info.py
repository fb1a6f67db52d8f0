"""What a task ended by, in the form that Celery's handlers take it in."""

from __future__ import annotations

import re
from typing import Any

from billiard.common import human_status
from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from celery.exceptions import TaskError

__all__ = ["as_failure", "as_lost", "how_it_died", "raised"]


def raised(exc_info: Any) -> BaseException:
    """What was raised, where a child of the pool sent it with its traceback as well."""
    exc = exc_info.exception
    return exc.exc if isinstance(exc, ExceptionWithTraceback) else exc  # type: ignore[no-any-return]


def how_it_died(exc: BaseException) -> str:
    """Of a process that is lost: what billiard says that it ended by; empty if it does not."""
    found = re.search(r"exited prematurely: (\w.*?)(?: Job: \d+)?\.?$", str(exc))
    return found[1] if found and isinstance(exc, WorkerLostError) else ""


def as_failure(exc_info: Any) -> Any:
    """Of a task that was left by a ``SystemExit``, a ``gevent.Timeout`` or the like."""
    left_by = raised(exc_info)
    if isinstance(left_by, WorkerLostError) and left_by.__context__ is not None:  # of pools
        left_by = left_by.__context__
    try:
        raise TaskError(f"the task was left by {left_by!r}") from left_by
    except TaskError:
        return ExceptionInfo()


def as_lost(exc_info: Any) -> Any:
    """Of a task that made its process leave, as of one whose process is lost.

    Celery does so since 5.7; before, it tried to encode the ``SystemExit`` as a result, which
    failed, and left the message unacknowledged.
    """
    exc = raised(exc_info)
    if not isinstance(exc, (SystemExit, KeyboardInterrupt)):
        return exc_info
    code = getattr(exc, "code", None)
    how = human_status(code) if isinstance(code, int) else repr(exc)  # as billiard says it
    try:
        raise WorkerLostError(f"Worker exited prematurely: {how}.")
    except WorkerLostError:
        return ExceptionInfo()
