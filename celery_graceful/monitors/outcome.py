"""What the main process closes: runs that ended where nobody was left to say so.

Revoked, expired, ignored, rejected for good, hard time limit, and children that were lost and
whose message does not come again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.exceptions import Ignore, Reject

from celery_graceful.monitors.checkin import CheckIn
from celery_graceful.monitors.monitors import Monitors, monitors_of

if TYPE_CHECKING:
    from celery_graceful.request import GracefulRequest

__all__ = ["check_in_of", "close", "close_dead", "close_failed", "interrupted"]

logger = logging.getLogger(__name__)

#: How a task fails whose process did not live to report it.
_LOST = (WorkerLostError, Terminated, TimeLimitExceeded, SystemExit, KeyboardInterrupt)

#: Seconds that the store gets where the loop of the worker waits.
SHORT = 0.3


def check_in_of(request: GracefulRequest) -> CheckIn | None:
    """The check-in of a delivery, if it has one."""
    found = request.__dict__.get("_check_in", request)
    if request.by_others:  # nobody opens one
        return None
    if found is request:
        try:
            found = _monitors(request).of_run(request.task, request.id, request.request_dict)
        except Exception:
            logger.exception("No check-in for %s", request.humaninfo())
            found = None
        request.__dict__["_check_in"] = found
    return found  # type: ignore[no-any-return]


def close(request: GracefulRequest, status: str, text: str, *, dying: bool = False) -> None:
    """The run has ended for good; done once for a delivery.

    Args:
        request: The delivery.
        status: What to close it as.
        text: For people.
        dying: The process that runs it, if one does, is being ended: its last words come first.
    """
    check_in = check_in_of(request)
    if check_in is not None:
        request.__dict__["_check_in"] = None
        pid = request.worker_pid if dying and request.started_at is not None else None
        try:
            _monitors(request).dispatch.finish(check_in, status, text, after=pid)
        except Exception:
            logger.exception("The check-in of %s could not be closed", request.humaninfo())


def close_failed(request: GracefulRequest, exc: BaseException, *, succeeded: bool) -> None:
    """It has ended by ``exc`` and will not come again; close it if nobody else has.

    Args:
        request: The delivery.
        exc: What it ended by.
        succeeded: Its success was stored before its process was lost.
    """
    if isinstance(exc, _LOST):
        close(request, "ok" if succeeded else "error", f"lost: {exc}")
    elif isinstance(exc, Reject):
        close(request, "error", "rejected")
    elif isinstance(exc, Ignore):
        close(request, "ok", "ignored")


def interrupted(requests: Iterable[GracefulRequest], timeout: float = SHORT) -> None:
    """They were taken away and go on elsewhere. Before their messages are given back.

    Args:
        requests: The deliveries.
        timeout: Seconds that the store may take for each.
    """
    for request in requests:
        check_in = check_in_of(request)
        if check_in is not None and request.started_at is not None:
            request.__dict__["_check_in"] = None
            try:
                _monitors(request).dispatch.goes_on(check_in, "given up", timeout)
            except Exception:
                logger.exception("The check-in of %s could not be closed", request.humaninfo())


def close_dead(
    app: Any, task_name: str, task_id: str, headers: Mapping[str, Any], status: str = "error"
) -> None:
    """Close the check-in of a run whose process is dead, and which will not go on.

    For who finds such a message: a poison task that goes to quarantine, for instance. Reports
    from a thread, returns at once, never raises.

    Args:
        app: The Celery app.
        task_name: Of the task.
        task_id: Of the task.
        headers: Of its message.
        status: What to close it as.
    """
    try:
        monitors = monitors_of(app)
        task = app.tasks.get(task_name)
        if task is not None:
            check_in = monitors.of_run(task, task_id, headers)
            if check_in is not None:
                monitors.dispatch.finish(check_in, status, "dead")
    except Exception:
        logger.exception("The check-in of %s[%s] could not be closed", task_name, task_id)


def _monitors(request: GracefulRequest) -> Monitors:
    return monitors_of(request.task.app)
