"""A death in the middle of a task, without the end of the process.

``Killed`` is raised, and wherever it would be caught, or a ``finally`` would begin, it is raised
again: a process that is killed runs none of that. ``with`` blocks are left, as the other side sees
a connection end: transactions are rolled back, and locks are free.

What runs the code of a task, such as an event loop, belongs to this process, and is left as after
any error. The coroutines that wait in such a loop are dead as well: they are cancelled, and cut off
in the same way.
"""

from __future__ import annotations

import dis
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

from celery_graceful.runs.run import execute
from celery_graceful.system.exception_chain import chain
from celery_graceful.system.loaded import is_instance, loaded

__all__ = ["Killed", "Killing", "is_death", "running_loop"]


#: What calls the ``__exit__`` of a ``with`` block that an exception leaves, what may stand
#: before it, and what awaits an ``__aexit__`` behind it.
_EXIT = "WITH_EXCEPT_START"
_BEFORE_EXIT = {dis.opmap.get(name) for name in ("PUSH_EXC_INFO", "CACHE", "NOP", "EXTENDED_ARG")}
_AWAITING = {
    "CACHE",
    "END_SEND",
    "EXTENDED_ARG",
    "GET_AWAITABLE",
    "JUMP_BACKWARD_NO_INTERRUPT",
    "LOAD_CONST",
    "NOP",
    "RESUME",
    "SEND",
    "YIELD_FROM",
    "YIELD_VALUE",
}

#: What may wait in the middle of its code, and go on later.
_WAITS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

#: Where the standard library is, and what else runs coroutines of others.
_STDLIB = os.path.dirname(os.__file__) + os.sep
_RUNNERS = frozenset({"anyio", "asgiref", "nest_asyncio", "outcome", "trio", "uvloop"})

#: Seconds that coroutines which are dead may take to leave their ``with`` blocks, in a loop that
#: the task does not close.
PATIENCE = 5.0


class Killed(BaseException):
    """The process that ran a task is dead, as far as the task is concerned."""


def is_death(exc: BaseException) -> bool:
    """Whether a killed task ends by that: also in a group, or as the end of a coroutine."""
    return is_instance(exc, "asyncio", "CancelledError") or any(
        isinstance(one, Killed) for one in chain(exc)
    )


def running_loop() -> Any:
    """The event loop of asyncio that runs in this thread; ``None`` if there is none."""
    find = loaded("asyncio", "get_running_loop")
    try:
        return None if find is None else find()
    except RuntimeError:
        return None


class Killing:
    """Lets no code of a task run any more; from ``begin``, in a function that it has called.

    Args:
        outside: The event loop in which the delivery began, if any: that of the test.
    """

    def __init__(self, outside: Any = None) -> None:
        self._tracer = sys.gettrace()
        self._profiler: Any = sys.getprofile()
        self._thread = threading.get_ident()
        self._outside = outside
        #: All that has begun, with who traces it.
        self._frames: dict[FrameType, Any] = {}
        #: What belongs to the task: of these, and of what waits in its event loop.
        self._of_task: set[FrameType] = set()
        self._loop: Any = None
        self._waiting: list[Any] = []
        self._is_over = False

    def begin(self) -> None:
        """The next line that the task would run raises."""
        frame, in_task = inspect.currentframe(), True
        while frame is not None:
            self._frames[frame] = frame.f_trace
            in_task = in_task and frame.f_code is not execute.__code__
            if in_task and _is_of_task(frame):
                self._of_task.add(frame)
            frame = frame.f_back
        loop = running_loop()
        if not in_task and loop is not self._outside:
            self._loop = loop
            self._end_coroutines()
        for frame in self._frames:
            frame.f_trace = self._line
        # The interpreter takes away which of the two has raised, so each puts the other in place: a
        # handler that is cut off may stand in another one.
        sys.setprofile(self._call)
        sys.settrace(self._enter)

    def end(self) -> None:
        """The death is over."""
        here = threading.get_ident() == self._thread
        if here and self._loop is not None:
            self._leave_loop()
        self._is_over = True
        if here:  # elsewhere what is called next ends it
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
        self._waiting.clear()
        self._loop = None

    # -- other coroutines ----------------------------------------------------------------

    def _end_coroutines(self) -> None:
        """Those that wait in the loop of the task. What libraries run there may serve an exit."""
        current = loaded("asyncio", "current_task")()
        later = []
        for task in loaded("asyncio", "all_tasks")(self._loop):
            frames = list(_frames_of(task.get_coro()))
            if task is not current and any(map(_is_own, frames)):
                self._waiting.append(task)
                self._of_task.update(filter(_is_of_task, frames))
                if current is not None and _waits_for(task, current):
                    later.append(task)  # else ``current`` would be cancelled as well, in an exit
                else:
                    task.cancel()
        if current is not None:
            self._waiting.append(current)
            current.add_done_callback(lambda _: [task.cancel() for task in later])

    def _leave_loop(self) -> None:
        """Nothing of the dead goes on when the process uses its loop again."""
        left = [task for task in self._waiting if not task.done()]
        if left and not self._loop.is_closed() and running_loop() is None:
            try:
                self._loop.run_until_complete(loaded("asyncio", "wait")(left, timeout=PATIENCE))
            except BaseException as exc:
                if not is_death(exc):
                    raise
        for task in self._waiting:
            if task.done() and not task.cancelled():
                task.exception()  # else asyncio says that nobody has asked for it

    # -- what the interpreter tells ------------------------------------------------------

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        if self._is_over:
            sys.settrace(None)
            return None
        self._resume(frame)
        return self._line if frame in self._frames else _ignore

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if self._is_over:
            return None
        if event == "line" and frame in self._of_task and not _leaves_with(frame):
            sys.setprofile(self._call)
            raise Killed
        if event == "return":
            self._leave(frame)
        return self._line

    def _call(self, frame: FrameType, event: str, arg: Any) -> None:
        if self._is_over:
            sys.setprofile(None)
            return
        if event == "return":
            if frame in self._frames:
                self._leave(frame)
                sys.settrace(self._enter)  # what stands around it may catch what leaves it
            return
        if event == "call" and self._resume(frame):
            frame.f_trace = self._line
            sys.settrace(self._enter)
        caller = frame.f_back if event == "call" else frame
        if caller not in self._of_task or event not in ("call", "c_call"):
            return
        if event == "c_call" or not self._may_run(frame, caller):
            caller.f_trace = self._line
            sys.settrace(self._enter)
            raise Killed

    def _may_run(self, frame: FrameType, caller: FrameType) -> bool:
        """A ``with`` block is left, what is dead goes on to its end, or a generator is closed."""
        return (
            frame in self._of_task
            or _leaves_with(caller)
            or frame.f_code.co_name == "__exit__"
            or bool(frame.f_code.co_flags & inspect.CO_GENERATOR)
        )

    def _resume(self, frame: FrameType) -> bool:
        """Whether it is of the task, has waited, and goes on."""
        if frame not in self._of_task or frame in self._frames:
            return False
        tracer: Any = self._tracer
        if tracer is not None:
            tracer = tracer(frame, "call", None)
            sys.settrace(self._enter)  # that of coverage puts itself in place
        self._frames[frame] = tracer
        return True

    def _leave(self, frame: FrameType) -> None:
        # Whoever traced before, such as coverage, has seen it begin, and counts.
        if not frame.f_code.co_flags & _WAITS:
            self._of_task.discard(frame)
        tracer: Callable[..., Any] | None = self._frames.pop(frame, None)
        if tracer is not None:
            tracer(frame, "return", None)


def _ignore(frame: FrameType, event: str, arg: Any) -> Any:
    """In the place of a tracer that a generator which goes on still has."""
    return _ignore


def _is_of_task(frame: FrameType) -> bool:
    """Not ours, and not what runs the code of others."""
    name = str(frame.f_globals.get("__name__"))
    top, path = name.partition(".")[0], frame.f_code.co_filename
    is_stdlib = top in sys.stdlib_module_names and path.startswith((_STDLIB, "<frozen "))
    return not (is_stdlib or top in _RUNNERS or name.startswith("celery_graceful."))


def _is_own(frame: FrameType) -> bool:
    """Not of a library, which may run what others wait for."""
    path = frame.f_code.co_filename
    return not (path.startswith(_STDLIB) or "site-packages" in path or "dist-packages" in path)


def _waits_for(task: Any, other: Any) -> bool:
    """Whether what cancels one cancels the other: it awaits it, or a ``gather`` of it."""
    waiting = [task]
    for each in waiting:
        awaited = getattr(each, "_fut_waiter", None)
        waiting += getattr(each, "_children", ()) if awaited is None else [awaited]
        if other in waiting:
            return True
    return False


def _frames_of(coroutine: Any) -> Iterator[FrameType]:
    """Where it waits, and all that waits with it."""
    while coroutine is not None:
        for kind, on in (("cr", "await"), ("ag", "await"), ("gi", "yieldfrom")):
            frame = getattr(coroutine, f"{kind}_frame", None)
            if frame is not None:
                yield frame
                coroutine = getattr(coroutine, f"{kind}_{on}")
                break
        else:
            return


def _leaves_with(frame: FrameType) -> bool:
    code, at = frame.f_code.co_code, frame.f_lasti
    while code[at] in _BEFORE_EXIT:
        at += 2
    return at in _exits(frame.f_code)


def _exits(code: CodeType) -> set[int]:
    """Where the exits of ``with`` blocks are called, and awaited."""
    found, inside = set(), False
    for each in dis.get_instructions(code):
        inside = each.opname == _EXIT or (inside and each.opname in _AWAITING)
        if inside:
            found.add(each.offset)
    return found
