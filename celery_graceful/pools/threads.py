"""Threads: an asynchronous exception, raised when the interpreter next gets control."""

from __future__ import annotations

import ctypes
import inspect
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.thread import _WorkItem
from functools import partial
from typing import Any

from celery.concurrency import thread
from celery.concurrency.base import BasePool
from celery.utils.log import get_logger
from celery.worker.request import Request

from celery_graceful.pools.base import Handed, InProcessAdapter
from celery_graceful.runs import log_locks
from celery_graceful.runs.lock_steps import SOON
from celery_graceful.runs.run import Run, runs
from celery_graceful.system import native
from celery_graceful.system.process import Owner

__all__ = ["ThreadsAdapter", "send_to", "set_async_exc"]

logger = get_logger(__name__)


class ThreadsAdapter(InProcessAdapter):
    #: The executor of a pool that may be handed a request without a future, and its ``submit``.
    _executor: ThreadPoolExecutor | None = None
    _submit: Any = None

    def prepare(self, owner: Owner) -> None:
        log_locks.install()
        pool = self.worker.pool
        if _is_celerys(pool) and _is_pythons(type(pool.executor)):
            self._executor, self._submit = pool.executor, type(pool.executor).submit
        super().prepare(owner)

    def hand_over(
        self, apply_async: Callable[..., Any], handed: Handed, args: Any, kwargs: Any, options: Any
    ) -> Any:
        executor = self._executor
        if (
            executor is None
            or type(executor).submit is not self._submit
            or self.worker.pool._does_debug
            or handed.request.plain is not Request
        ):
            return super().hand_over(apply_async, handed, args, kwargs, options)
        _put(executor, _Item(handed, handed.args(args)))
        return None  # Celery keeps a weak reference to what nobody else keeps

    def notify(self) -> None:
        super().notify()
        send_to(list(runs.values()))


class _Item:
    """What a thread of an executor finds in its queue; without a future, which nobody would ask."""

    __slots__ = ("_args", "_handed")

    def __init__(self, handed: Handed, args: Any) -> None:
        self._handed, self._args = handed, args

    def run(self) -> None:
        """Run it, in the thread."""
        handed = self._handed
        try:
            thread.apply_target(
                handed.graceful_body, self._args, None, handed.ended, handed.accepted
            )
        except BaseException:  # a future would keep it to itself, too
            logger.debug("Raised in a thread of the pool", exc_info=True)

    @property
    def future(self) -> _Item:
        """For who clears the queue."""
        return self

    def cancel(self) -> None:
        """It is not run."""


class _NoneIdle:
    """Counts no idle threads: nobody asks for them when no more of them can be started."""

    #: Called after each item, so in C.
    release = staticmethod(bool)

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        return False


_NONE_IDLE = _NoneIdle()


def _put(executor: Any, item: _Item) -> None:
    """As its ``submit``."""
    with executor._shutdown_lock:
        if executor._shutdown:
            raise RuntimeError("cannot schedule new futures after shutdown")
        executor._work_queue.put(item)
        if len(executor._threads) < executor._max_workers:
            executor._adjust_thread_count()
        elif executor._idle_semaphore is not _NONE_IDLE:
            executor._idle_semaphore = _NONE_IDLE


def _is_celerys(pool: Any) -> bool:
    """Whether a pool hands its work to an executor as Celery's does."""
    own = vars(pool)
    return (
        type(pool).on_apply is thread.TaskPool.on_apply
        and type(pool).apply_async is BasePool.apply_async
        and not own.keys() & {"on_apply", "apply_async"}
    )


def _is_pythons(executor: type) -> bool:
    """Whether its threads run what ``_put`` hands them, and nobody watches that, as some do that
    trace."""
    submit = getattr(ThreadPoolExecutor.submit, "__globals__", None)
    return (
        executor is ThreadPoolExecutor
        and submit is vars(sys.modules[executor.__module__])
        # Since Python 3.14 items are given a context.
        and _parameters_of(_WorkItem.run) == _parameters_of(_Item.run)
    )


def _parameters_of(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def send_to(some: list[Run]) -> None:
    """Raise in their threads what is due there; where one stands at a lock, when it has left it."""
    late = [run for run in some if not run.send_async(set_async_exc)]
    if late:
        native.start_thread(partial(_send_later, late), "graceful-send-later")


def _send_later(late: list[Run]) -> None:
    while late:
        native.pause(SOON)
        late = [run for run in late if not run.send_async(set_async_exc)]


def set_async_exc(ident: int, exc: Any) -> None:
    """See docs.python.org/3/c-api/init.html#c.PyThreadState_SetAsyncExc."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(ident), None if exc is None else ctypes.py_object(exc)
    )
