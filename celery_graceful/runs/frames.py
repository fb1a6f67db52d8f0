"""A user's traceback begins with the user's task, and not with what runs it.

Sentry's SDK and pytest leave out frames with a local variable ``__tracebackhide__``. Celery knows
nothing of that for the log and the stored result: there the frames are taken off when it takes
note of an exception.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from functools import lru_cache, wraps
from types import CodeType
from typing import Any, TypeVar

import celery.app.task

__all__ = ["hidden", "install", "is_hidden", "point", "point_in", "spared", "take_off"]

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

_FRAME = re.compile(r'^  File "(.*)", line (\d+), in (.*)$', re.MULTILINE)

F = TypeVar("F", bound=Callable[..., Any])

_hidden: set[CodeType] = set()


def hidden(fn: F) -> F:
    """A function that is no news for the user, and has a local variable ``__tracebackhide__``."""
    _hidden.add(fn.__code__)
    return fn


def is_hidden(code: CodeType) -> bool:
    """Whether it is no news for the user."""
    return code in _hidden


def take_off(exc: BaseException) -> None:
    """Take what is hidden out of a traceback, from below the frame that has caught it."""
    # In place: others hold the traceback that begins with that frame.
    traceback = exc.__traceback__
    while traceback is not None:
        below = traceback.tb_next
        while below is not None and below.tb_frame.f_code in _hidden:
            below = below.tb_next
        if below is not traceback.tb_next:
            traceback.tb_next = below
        traceback = below


def point(exc: BaseException) -> str:
    """Where it was raised: the innermost place outside of this package, as ``file:line``."""
    found, traceback = "", exc.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if not code.co_filename.startswith(_HERE):
            found = f"{os.path.basename(code.co_filename)}:{traceback.tb_lineno} ({code.co_name})"
        traceback = traceback.tb_next
    return found


def point_in(stack: str) -> str:
    """The same, of a stack as ``stacks.stack_of`` writes it; empty if it names no such place."""
    for file, line, function in reversed(_FRAME.findall(stack)):
        if not file.startswith((_HERE, "<")):
            return f"{os.path.basename(file)}:{line} ({function})"
    return ""


def spared(task: Any, request: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    """What to call for a task's inherited ``__call__``: its ``run``, where that is all it would do.

    As what Celery puts in the place of ``Task.__call__`` in workers, without a frame of its own.

    Args:
        task: The task.
        request: Its context.
        call: What it inherits.
    """
    if request.called_directly or request._protected:
        return call
    if not _is_celerys(getattr(call, "__func__", None)):
        return call  # somebody else has put theirs in its place
    request._protected = 1  # what the task calls of itself has a request of its own
    run: Callable[..., Any] = task.run
    return run


@lru_cache(64)
def _is_celerys(call: Any) -> bool:
    where = getattr(call, "__globals__", None)
    return where is _TASKS or where is vars(sys.modules.get(_TRACE, celery.app.task))


#: Where Celery defines ``Task.__call__``, and what it puts in its place.
_TASKS, _TRACE = vars(celery.app.task), "celery.app.trace"


def install() -> None:
    """In a process that runs tasks, once."""
    from celery.app.trace import TraceInfo  # a web process needs none of it

    plain = TraceInfo.__init__
    if getattr(plain, "_takes_off", False):
        return

    @wraps(plain)
    def __init__(self: TraceInfo, state: str, retval: Any = None) -> None:
        if isinstance(retval, BaseException):
            take_off(retval)
        plain(self, state, retval)

    __init__._takes_off = True  # type: ignore[attr-defined]
    TraceInfo.__init__ = __init__
