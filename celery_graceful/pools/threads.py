"""Threads: an asynchronous exception, raised when the interpreter next gets control."""

from __future__ import annotations

import ctypes
from typing import Any

from celery_graceful.pools.base import InProcessAdapter
from celery_graceful.run import runs

__all__ = ["ThreadsAdapter"]


class ThreadsAdapter(InProcessAdapter):
    def notify(self) -> None:
        super().notify()
        for run in list(runs.values()):
            run.send_async(_set_async_exc)


def _set_async_exc(ident: int, exc: Any) -> None:
    """See docs.python.org/3/c-api/init.html#c.PyThreadState_SetAsyncExc."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(ident), None if exc is None else ctypes.py_object(exc)
    )
