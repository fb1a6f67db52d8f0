"""A death in the middle of a task, without the end of the process.

``Killed`` is raised, and wherever it would be caught, or a ``finally`` would begin, it is raised
again: a process that is killed runs none of that. ``with`` blocks are left, as the other side sees
a connection end: transactions are rolled back, and locks are free.
"""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from celery_graceful.runs.run import execute

__all__ = ["Killed", "Killing"]


#: What calls the ``__exit__`` of a ``with`` block that an exception leaves, and what may stand
#: before it.
_EXIT = dis.opmap["WITH_EXCEPT_START"]
_BEFORE_EXIT = {dis.opmap.get(name) for name in ("PUSH_EXC_INFO", "CACHE", "NOP", "EXTENDED_ARG")}


class Killed(BaseException):
    """The process that ran a task is dead, as far as the task is concerned."""


class Killing:
    """Lets no code of a task run any more; from ``begin``, in a function that it has called."""

    def __init__(self) -> None:
        self._tracer = sys.gettrace()
        self._profiler: Any = sys.getprofile()
        #: All that has begun, with who traces it; and of these what belongs to the task.
        self._frames: dict[FrameType, Any] = {}
        self._of_task: set[FrameType] = set()

    def begin(self) -> None:
        """The next line that the task would run raises."""
        frame, in_task = inspect.currentframe(), True
        while frame is not None:
            self._frames[frame] = frame.f_trace
            in_task = in_task and frame.f_code is not execute.__code__
            if in_task and not str(frame.f_globals.get("__name__")).startswith("celery_graceful."):
                self._of_task.add(frame)
            frame = frame.f_back
        for frame in self._frames:
            frame.f_trace = self._line
        # The interpreter takes away which of the two has raised, so each puts the other in place: a
        # handler that is cut off may stand in another one.
        sys.setprofile(self._call)
        sys.settrace(self._enter)

    def end(self) -> None:
        """The death is over."""
        sys.settrace(self._tracer)
        for frame, tracer in self._frames.items():
            frame.f_trace = tracer
        if self._profiler is None or callable(self._profiler):
            sys.setprofile(self._profiler)
        else:  # one in C, such as cProfile's
            sys.setprofile(None)
            self._profiler.enable()
        self._frames.clear()
        self._of_task.clear()

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame in self._frames else _ignore

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and frame in self._of_task and not _leaves_with(frame):
            sys.setprofile(self._call)
            raise Killed
        if event == "return":
            self._leave(frame)
        return self._line

    def _call(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "return":
            if frame in self._frames:
                self._leave(frame)
                sys.settrace(self._enter)
            return
        caller = frame.f_back if event == "call" else frame
        if caller in self._of_task and event in ("call", "c_call") and not _may_run(event, frame):
            caller.f_trace = self._line
            sys.settrace(self._enter)
            raise Killed

    def _leave(self, frame: FrameType) -> None:
        # Whoever traced before, such as coverage, has seen it begin, and counts.
        self._of_task.discard(frame)
        tracer: Callable[..., Any] | None = self._frames.pop(frame, None)
        if tracer is not None:
            tracer(frame, "return", None)


def _ignore(frame: FrameType, event: str, arg: Any) -> Any:
    """In the place of a tracer that a generator which goes on still has."""
    return _ignore


def _may_run(event: str, frame: FrameType) -> bool:
    """A ``with`` block is left, or a generator is closed since nobody has it any more."""
    code = frame.f_code
    return event == "call" and (
        code.co_name == "__exit__" or bool(code.co_flags & inspect.CO_GENERATOR)
    )


def _leaves_with(frame: FrameType) -> bool:
    code, at = frame.f_code.co_code, frame.f_lasti
    while code[at] in _BEFORE_EXIT:
        at += 2
    return code[at] == _EXIT
