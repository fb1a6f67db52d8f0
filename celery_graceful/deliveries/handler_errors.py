"""What is raised at the end of a task, by whoever it is: it is said, and the rest is done.

Between a task's end and its acknowledgement Celery's books are kept, results are stored, events
sent and hooks called: those of users too. The pools swallow what is raised there, or the worker
ends by it; the task would be active for ever, and its message held.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.request import Request

from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.system.describe import describe

__all__ = ["LOST", "let_go", "put_right", "requeues", "say"]

logger = get_logger(__name__)

#: What a task ends by whose process has not lived to say so.
LOST = (WorkerLostError, SystemExit, KeyboardInterrupt)


def let_go(request: Any) -> None:
    """Take a delivery off Celery's books, as ``state.task_ready`` does, and never raise."""
    if state.requests.get(request.id) is request:
        state.requests.pop(request.id, None)
    state.active_requests.discard(request)
    state.reserved_requests.discard(request)
    scheduled = getattr(state, "scheduled_requests", None)  # since Celery 5.7
    if scheduled is not None:
        scheduled.discard(request)


def requeues(request: HeldMessage, ended_by: BaseException) -> bool | None:
    """What Celery does with the message of a task that ended by an exception.

    Returns:
        Whether it is rejected to come again, or for good; ``None``: it is acknowledged.
    """
    task = request.task
    if isinstance(ended_by, Reject):
        return bool(ended_by.requeue)
    if isinstance(ended_by, (Ignore, Retry, Terminated)) or not task.acks_late:
        return None
    if isinstance(ended_by, LOST) and task.reject_on_worker_lost and not request.is_settled:
        return True
    kind = "acks_on_timeout" if isinstance(ended_by, TimeLimitExceeded) else "acks_on_failure"
    # Celery before 5.7 knows one option for both.
    if getattr(task, kind, getattr(task, "acks_on_failure_or_timeout", True)):
        return None
    return kind == "acks_on_timeout"


def put_right(request: HeldMessage, raised: BaseException, requeue: bool | None = None) -> None:
    """Finish what Celery left half done when ``raised`` was raised at the end of a task.

    Args:
        request: The delivery.
        raised: It is logged; what is meant for the whole process is raised again.
        requeue: As ``requeues`` says.
    """
    let_go(request)
    try:
        _answer(request, requeue)
    except Exception as exc:
        say(request, "has ended, and answering its message raised", exc)
    say(request, "has ended, and what was raised after that changes nothing", raised)
    if isinstance(raised, (SystemExit, KeyboardInterrupt)):
        raise raised


def _answer(request: HeldMessage, requeue: bool | None) -> None:
    if request.acknowledged:
        return
    try:
        if requeue is None:
            request.acknowledge()
        else:
            request.reject(requeue=requeue)
    except Exception:  # a user's class of requests, an event
        if request.acknowledged:
            raise
        if requeue is None:
            Request.acknowledge(request)
        else:
            Request.reject(request, requeue=requeue)
        raise


def say(request: Any, what: str, exc: BaseException) -> None:
    """Log it with the name of the task; where a filter of the log raises, on standard error."""
    info = (type(exc), exc, exc.__traceback__)
    try:
        logger.error("%s[%s] %s: %s", request.name, request.id, what, describe(exc), exc_info=info)
    except Exception as filtered:
        try:
            print(f"{request.name}[{request.id}] {what}; not logged: {filtered!r}", file=sys.stderr)
            traceback.print_exception(*info)
        except (OSError, ValueError):
            pass  # nobody listens
