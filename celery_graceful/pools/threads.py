"""Threads: an asynchronous exception, raised when the interpreter next gets control."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from celery.utils.collections import LimitedSet
from celery.worker import state

from celery_graceful.pools.base import InProcessAdapter
from celery_graceful.runs.run import runs
from celery_graceful.system.process import Owner

__all__ = ["ThreadsAdapter", "set_async_exc"]


class ThreadsAdapter(InProcessAdapter):
    def prepare(self, owner: Owner) -> None:
        super().prepare(owner)
        _one_at_a_time(state.successful_requests)

    def notify(self) -> None:
        super().notify()
        for run in list(runs.values()):
            run.send_async(set_async_exc)


def _one_at_a_time(ids: LimitedSet) -> None:
    """Each thread adds what has succeeded to one set of Celery's, which may not be shared."""
    lock = threading.Lock()

    def add(item: Any, now: float | None = None) -> None:
        with lock:
            type(ids).add(ids, item, now)

    ids.add = add


def set_async_exc(ident: int, exc: Any) -> None:
    """See docs.python.org/3/c-api/init.html#c.PyThreadState_SetAsyncExc."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(ident), None if exc is None else ctypes.py_object(exc)
    )
