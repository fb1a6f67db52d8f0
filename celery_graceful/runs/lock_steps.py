"""Where a thread is just taking a lock, or letting go of it, in a function of Python's own.

What is raised there from outside comes between the lock and the ``try`` by which it is let go of:
it is held for ever: that of all loggers, of a module that is imported, of a queue. ``with`` has no
such place for a ``Lock`` or an ``RLock`` (so ``log_locks``); code of others that calls ``acquire``
has one, of which nobody can know.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Iterator
from types import CodeType, FrameType, FunctionType
from typing import Any

__all__ = ["SOON", "is_at_lock"]

#: Seconds until one that stands there is looked at again.
SOON = 0.002

_OURS = "celery_graceful."
_TAKES = {"acquire", "release", "_acquireLock", "_releaseLock"}


def _steps() -> frozenset[CodeType]:
    imports: Any = importlib._bootstrap
    held = (threading.Condition, imports._ModuleLockManager)  # by ``with``, of queues for one
    enter = [vars(lock)[name] for lock in held for name in ("__enter__", "__exit__")]
    lock = imports._ModuleLock
    return frozenset(
        function.__code__
        for function in (*_functions(logging), *enter, lock.acquire, lock.release)
        if function in enter or not _TAKES.isdisjoint(function.__code__.co_names)
    )


def _functions(module: Any) -> Iterator[FunctionType]:
    for thing in vars(module).values():
        for one in vars(thing).values() if isinstance(thing, type) else (thing,):
            if isinstance(one, FunctionType) and one.__module__ == module.__name__:
                yield one


#: Made here: a handler of signals that takes long is interrupted by the next one.
_STEPS = _steps()


def is_at_lock(frame: FrameType | None) -> bool:
    """Whether the innermost frame of a thread stands in one of those.

    Below a handler of signals of ours, that is: another signal may come while one runs.
    """
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(_OURS):
        frame = frame.f_back
    return frame is not None and frame.f_code in _STEPS
