"""What a run came to where that could not be stored: it goes to the main process with its end.

Who stores results leaves it here, in the process that runs the task; with what Celery's tracer
says of the run it goes on, through the pipe of a child too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from celery.states import SUCCESS

__all__ = ["TRACER", "Unstored", "sealed", "take", "unstored"]


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

#: By the ids of tasks, until their runs are over.
unstored: dict[str, Unstored] = {}


class _Text(str):
    """What is said of a result, which goes along."""

    unstored: Unstored


def sealed(done: Any, task_id: str) -> Any:
    """What Celery's tracer says of a run, and with it what could not be stored.

    Args:
        done: What it says.
        task_id: Whose run it was.
    """
    found = unstored.pop(task_id, None)
    if found is None or found.state != (SUCCESS if done.info is None else done.info.state):
        return done
    if done.info is None:
        text = _Text(done.retstr)
        text.unstored = found
        return done._replace(retstr=text)
    done.retval.unstored = found
    return done


def take(end: Any) -> Unstored | None:
    """What comes along with the end of a run.

    Args:
        end: What is said of its result, or an ``ExceptionInfo``.
    """
    found: Unstored | None = getattr(end, "__dict__", {}).pop("unstored", None)
    return found
