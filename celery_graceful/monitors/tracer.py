"""The check-in of a task, where the task runs: around Celery's tracer, so around everything.

Success and failure are closed here. A retry leaves it open, and so does an
interruption, unless ``on_interrupt`` says otherwise. What the process
that runs the task cannot tell, or does not live to tell, the main process closes: ``outcome.py``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from celery import current_task, states
from celery import signals as celery_signals
from celery.exceptions import Ignore, Reject
from celery.utils import uuid

from celery_graceful.exceptions import Interrupted, TaskInterrupted
from celery_graceful.messages.own_headers import DELIVERY
from celery_graceful.monitors.check_in import CheckIn
from celery_graceful.monitors.registry import Monitors, monitors_of
from celery_graceful.phases import InterruptReason
from celery_graceful.runs.unstored import is_unsent, sealed, unstored
from celery_graceful.system.loaded import loaded
from celery_graceful.system.process import Slot, kept
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.successors import Sent

__all__ = ["eager", "silence_sentry", "trace_with_check_in"]

logger = logging.getLogger(__name__)

#: Another run is what counts, or the main process closes it.
_NOT_HERE = (str(InterruptReason.LEASE_LOST), str(InterruptReason.REVOKED))

#: In a pool's child: the main process may end it as soon as it has the result, so reports
#: leave before the result does.
reports_first = Slot("reports first", bool, in_fork=kept)


def trace_with_check_in(task: Any) -> None:
    """Put the check-in around the tracer of ``task``; doing so twice is the same as once."""
    trace = task.__trace__
    if trace is None or hasattr(trace, "_checks_in"):
        return
    monitors = monitors_of(task.app)
    celery_signals.before_task_publish.connect(_before_retry, weak=False)

    @wraps(trace)
    def traced(task_id: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        check_in = None
        if request is None or monitors.may_have(task, request):
            check_in = _find(monitors, task, task_id, request)
        if check_in is None:
            done = trace(task_id, args, kwargs, request)
            return sealed(done, task_id) if unstored or done.info is not None else done
        if not _will_not_start(task):
            _quietly(monitors.dispatch.start, check_in)
        done = None
        try:
            done = trace(task_id, args, kwargs, request)
            return sealed(done, task_id) if unstored or done.info is not None else done
        finally:
            _quietly(_ended, monitors, check_in, done, request or {})

    traced._checks_in = True  # type: ignore[attr-defined]
    task.__trace__ = traced


def _will_not_start(task: Any) -> bool:
    """A graceful task that arrives while the worker is stopping."""
    return worker_state.is_stopping() and hasattr(type(task), "interrupted")


def _find(monitors: Monitors, task: Any, task_id: str, request: Any) -> CheckIn | None:
    try:
        check_in = monitors.of_run(task, task_id, request or {})
        if check_in is not None:
            silence_sentry(monitors)
        return check_in
    except Exception:
        logger.exception("No check-in for %s[%s]", task.name, task_id)
        return None


def _ended(monitors: Monitors, check_in: CheckIn, done: Any, request: dict[str, Any]) -> None:
    state, exc = states.SUCCESS, None
    # Whatever it has come to besides: the last try closes it.
    if worker_state.successor_of(request.get(DELIVERY)) is Sent.RETRY:
        state = states.RETRY
    elif done is None:
        return  # something was raised by others than the task: the main process knows why
    elif done.info is not None:
        state, exc = done.info.state, done.info.retval
    if state == states.SUCCESS:
        monitors.dispatch.finish(check_in, "ok", "succeeded")
    elif state == states.FAILURE and not is_unsent(done.retval):  # else it may run again
        monitors.dispatch.finish(check_in, "error", f"failed: {exc!r}")
    elif state == states.RETRY:
        monitors.dispatch.goes_on(check_in, "retry")
    elif isinstance(exc, TaskInterrupted) and exc.started and exc.reason not in _NOT_HERE:
        monitors.dispatch.goes_on(check_in, f"interrupted: {exc.reason}")
    if reports_first.value:
        monitors.dispatch.wait(_patience(monitors))


def _before_retry(headers: Any = None, **_: Any) -> None:
    """The next try may begin as soon as its message is out; what this one reported comes first."""
    if headers and headers.get("retries"):
        task = current_task
        if task and task.request.id == headers.get("id"):
            monitors = monitors_of(task.app)
            if _find(monitors, task, task.request.id, headers) is not None:
                _quietly(monitors.dispatch.wait, _patience(monitors))


def _patience(monitors: Monitors) -> float:
    board = worker_state.board.value
    if board is None or not board.interrupted:
        return monitors.settings.monitor_timeout
    return min(monitors.settings.monitor_timeout, max(0.1, board.hard_at - time.monotonic()))


def _quietly(call: Callable[..., None], *args: Any) -> None:
    """A check-in is no reason to fail a task; nor is a soft time limit that hits it here."""
    try:
        call(*args)
    except Exception:
        logger.exception("A check-in could not be reported")


def silence_sentry(monitors: Monitors) -> Callable[[], None]:
    """Keep sentry's own integration from closing check-ins, where they are closed here.

    Returns:
        What lets it do so again.
    """
    silenced = []
    if monitors.closes_sentrys:
        for signal, name in (
            (celery_signals.task_success, "crons_task_success"),
            (celery_signals.task_failure, "crons_task_failure"),
            (celery_signals.task_retry, "crons_task_retry"),
        ):
            theirs = loaded("sentry_sdk.integrations.celery.beat", name)
            if theirs is not None and signal.disconnect(theirs):
                silenced.append(partial(signal.connect, theirs))

    def speak() -> None:
        for connect in silenced:
            connect()

    return speak


# -- eager ---------------------------------------------------------------------------


def eager(task: Any, apply: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Apply a task here and now. Its retries are part of it."""
    if kwargs.get("retries"):
        return apply(*args, **kwargs)
    if len(args) < 5:
        kwargs["task_id"] = kwargs.get("task_id") or uuid()
    task_id = args[4] if len(args) > 4 else kwargs["task_id"]
    try:
        monitors = monitors_of(task.app)
        check_in = monitors.of_run(task, task_id, kwargs.get("headers") or {})
    except Exception:
        logger.exception("No check-in for %s", task.name)
        check_in = None
    if check_in is None:
        return apply(*args, **kwargs)
    _quietly(monitors.dispatch.start, check_in)
    status = "error"
    try:
        result = apply(*args, **kwargs)
        if result.state in (states.SUCCESS, states.IGNORED):
            status = "ok"
        elif isinstance(result.result, Interrupted):
            status = check_in.on_interrupt or status
        return result
    except Interrupted:  # with the task that it is part of, which does all of it again
        status = check_in.on_interrupt or status
        raise
    except Reject:
        raise
    except Ignore:
        status = "ok"
        raise
    finally:
        _quietly(monitors.dispatch.finish, check_in, status)
