"""What the main process has to know of the end of a run that Celery does not say.

What it came to, where that could not be stored: who stores results leaves it here, in the process
that runs the task, and with what Celery's tracer says of the run it goes on, through the pipe of a
child too. And that not the task has failed, but what was to be sent after it, the rest of a chain.
"""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from celery.exceptions import BackendStoreError
from celery.states import FAILURE, SUCCESS
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError

from celery_graceful.system.describe import describe
from celery_graceful.system.log_thread import log

__all__ = ["HERE", "TRACER", "Here", "Unstored", "is_tracers", "is_unsent", "leave", "sealed"]
__all__ += ["take", "unstored"]


logger = get_logger(__name__)


class Unstored(NamedTuple):
    """What a run came to."""

    state: str
    #: What it returned, or what it was left by.
    result: Any
    traceback: str | None
    #: The tasks that it sent, as tuples.
    children: list[Any]
    #: Whether it is stored at all: else it is for a chord, or for who is told of a failure.
    stores: bool
    #: The server has said that it does not take it: it is full, for one.
    refused: bool


#: Module and name of the function that runs Celery's tracer, and takes it along.
TRACER = "celery_graceful.monitors.tracer", "traced"

#: By the identities of threads (or greenlets) and of tasks, until their runs are over: a task that
#: is tried again may run again before the run that has sent it is over.
unstored: dict[tuple[int, str], Unstored] = {}


@dataclass
class Here:
    """How the end of a task is stored that the main process has to store itself.

    Attributes:
        keep: What cannot be stored now is stored later; whether it is.
        is_kept: Nothing is stored any more: it is already, or will be later.
        is_away: The result backend is away, and is not asked either.
    """

    keep: Callable[[Unstored], bool]
    is_kept: bool = False
    is_away: bool = False

    def is_kept_for_later(self) -> None:
        """The result backend is away, and that is no matter to its end."""
        self.is_kept = self.is_away = True

    def is_stored(self) -> None:
        """The result backend is there again."""
        self.is_away = False


#: Under this name the context of a task has it.
HERE = "graceful_here"


class _Text(str):
    """What is said of a result, which goes along."""

    unstored: Unstored


class _Pickled(bytes):
    """A result on its way: who reads the pipe of a child ends the worker if it cannot read it."""


def leave(task_id: str, kept: Unstored) -> None:
    """Leave what a task came to for the end of its run, in this thread or greenlet.

    Args:
        task_id: Whose run it is.
        kept: What could not be stored.
    """
    unstored[threading.get_ident(), task_id] = kept


def sealed(done: Any, task_id: str) -> Any:
    """What Celery's tracer says of a run, and with it what could not be stored, or sent.

    Args:
        done: What it says.
        task_id: Whose run it was.
    """
    if done.info is not None:
        _note_unsent(done)
    found = unstored.pop((threading.get_ident(), task_id), None)
    if found is None or found.state != (SUCCESS if done.info is None else done.info.state):
        return done
    found = found._replace(result=_Pickled(pickle.dumps(found.result)))
    if done.info is None:
        text = _Text(done.retstr)
        text.unstored = found
        return done._replace(retstr=text)
    done.retval.unstored = found
    return done


def take(end: Any, task_id: str) -> Unstored | None:
    """What comes along with the end of a run.

    Args:
        end: What is said of its result, or an ``ExceptionInfo``.
        task_id: Whose run it was.
    """
    found: Unstored | None = getattr(end, "__dict__", {}).pop("unstored", None)
    if found is None or not isinstance(found.result, _Pickled):
        return found
    try:
        return found._replace(result=pickle.loads(found.result))
    except Exception as exc:  # a class that the child alone has, for one
        text = "What %s came to (%s) could not be stored, and is lost: %s"
        why = describe(exc)
        log(logger, logging.ERROR, text, task_id, found.state, why)
        return found._replace(state=FAILURE, result=BackendStoreError(why, task_id=task_id))


def _note_unsent(done: Any) -> None:
    """Note of a failure, as Celery's tracer says it, whether it is none of the task's.

    Since 5.7 the tracer takes a broker that does not take the rest of a chain for a failure of the
    task; before, for one of its own.
    """
    exc = done.info.retval
    if done.info.state == FAILURE and isinstance(exc, OperationalError) and is_tracers(exc):
        done.retval.unsent = True


def is_tracers(exc: BaseException) -> bool:
    """Whether Celery's tracer has raised it, which sends what follows, and not the task.

    Args:
        exc: As it was caught there.
    """
    traceback = exc.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        where, what = frame.f_globals.get("__name__"), frame.f_code.co_name
        if (where, what) != ("celery.app.trace", "trace_task"):
            return what != "__protected_call__" and where in ("celery.app.trace", "celery.canvas")
        traceback = traceback.tb_next
    return False


def is_unsent(exc_info: Any) -> bool:
    """Whether not the task has failed, but what was to be sent after it.

    Args:
        exc_info: What is said of the end of a run.
    """
    return getattr(exc_info, "unsent", False)
