"""What the main process closes: runs that ended where nobody was left to say so.

Revoked, expired, ignored, rejected for good, hard time limit, and children that were lost and
whose message does not come again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.exceptions import Ignore, Reject

from celery_graceful.monitors.check_in import CheckIn
from celery_graceful.monitors.registry import Monitors, monitors_of

__all__ = ["Run", "close", "close_dead", "close_failed", "find_check_in", "interrupted"]

logger = logging.getLogger(__name__)

#: How a task fails whose process did not live to report it.
_LOST = (WorkerLostError, Terminated, TimeLimitExceeded, SystemExit, KeyboardInterrupt)

#: Seconds that the store gets where the loop of the worker waits.
SHORT = 0.3


class Run(Protocol):
    """What the main process knows of a run; its request, for one."""

    task: Any
    id: Any
    request_dict: Any
    worker_pid: int | None
    started_at: float | None

    @property
    def check_in(self) -> CheckIn | None:
        """The check-in that is to be closed, if there is one."""

    def take_check_in(self) -> CheckIn | None:
        """The same, for who closes it: nobody else finds it any more."""

    def humaninfo(self) -> str:
        """For people."""


def find_check_in(run: Run) -> CheckIn | None:
    """The check-in of a run, if it has one."""
    try:
        return _monitors(run).of_run(run.task, run.id, run.request_dict)
    except Exception:
        logger.exception("No check-in for %s", run.humaninfo())
        return None


def close(run: Run, status: str, text: str, *, dying: bool = False) -> None:
    """The run has ended for good; done once for each.

    Args:
        run: The run.
        status: What to close it as.
        text: For people.
        dying: The process that runs it, if one does, is being ended: its last words come first.
    """
    check_in = run.take_check_in()
    if check_in is not None:
        pid = run.worker_pid if dying and run.started_at is not None else None
        try:
            _monitors(run).dispatch.finish(check_in, status, text, after=pid)
        except Exception:
            logger.exception("The check-in of %s could not be closed", run.humaninfo())


def close_failed(run: Run, exc: BaseException, *, succeeded: bool, said: bool) -> None:
    """It has ended by ``exc`` and will not come again; close it if nobody else has.

    Args:
        run: The run.
        exc: What it ended by.
        succeeded: Its success was stored before its process was lost.
        said: Where it ran, it was said how it ended; else what is called at its end has raised.
    """
    if isinstance(exc, _LOST):
        close(run, "ok" if succeeded else "error", f"lost: {exc}")
    elif isinstance(exc, Reject):
        close(run, "error", "rejected")
    elif isinstance(exc, Ignore):
        close(run, "ok", "ignored")
    elif not said:
        close(run, "error", f"failed: {exc!r}")


def interrupted(runs: Iterable[Run], timeout: float = SHORT) -> None:
    """They were taken away and go on elsewhere. Before their messages are given back.

    Args:
        runs: Their runs.
        timeout: Seconds that the store may take for each.
    """
    for run in runs:
        check_in = None if run.started_at is None else run.take_check_in()
        if check_in is not None:
            try:
                _monitors(run).dispatch.goes_on(check_in, "given up", timeout)
            except Exception:
                logger.exception("The check-in of %s could not be closed", run.humaninfo())


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


def _monitors(run: Run) -> Monitors:
    return monitors_of(run.task.app)
