"""The jobs of Celery's ``AsynPool``, made in less time than it takes to hand one to a child.

Billiard's have an event that somebody might wait for, in another thread, and are watched for time
limits also where there is none. The loop hears of all that becomes of a job, and nobody waits.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from billiard import pool as billiard_pool
from billiard.pool import RUN, TASK, ApplyResult, Pool

__all__ = ["MakesJobs", "can_make_jobs"]

_making = threading.Lock()


def can_make_jobs(cls: Any) -> bool:
    """Whether jobs of a pool like ``cls`` are billiard's own, and such as are known here.

    Others watch how they are made, or make their own: tracers, for one.
    """
    makes, result = Pool.apply_async, billiard_pool.ApplyResult
    return (
        cls.apply_async is makes
        and result is ApplyResult
        and result.__module__ == billiard_pool.__name__
        and all(map(_is_billiards, (makes, result.__init__)))
        and _takes_what(makes)
        and _has_what(result({}, None))
    )


def _takes_what(makes: Callable[..., Any]) -> bool:
    """Whether a ``Job`` knows all that billiard's ``apply_async`` hands on to one."""
    _, *options = inspect.signature(Job).parameters
    return [*inspect.signature(makes).parameters] == ["self", "func", "args", "kwds", *options]


def _has_what(result: ApplyResult) -> bool:
    """Whether a ``Job`` has all that one of billiard's has."""
    none = SimpleNamespace(_cache={}, soft_timeout=None, timeout=None, lost_worker_timeout=None)
    mine = Job(none)
    return all(hasattr(mine, name) for name in vars(result))


def _is_billiards(function: Any) -> bool:
    own = vars(billiard_pool)
    return getattr(function, "__globals__", None) is own and not hasattr(function, "__wrapped__")


class _Flag:
    """An event: a real one as soon as somebody waits for it."""

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._event: threading.Event | None = None

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        if self._event is not None:
            self._event.set()

    def wait(self, timeout: float | None = None) -> bool:
        with _making:
            event = self._event = self._event or threading.Event()
        if self._is_set:  # meanwhile, and perhaps before there was an event to set
            event.set()
        return event.wait(timeout)


class Job(ApplyResult):
    """As billiard's.

    Args:
        pool: Celery's, that runs it.
        options: As its ``apply_async`` takes them, see there.
    """

    # As at first: few are cancelled, and none is asked where it runs before it does.
    _accepted = _cancelled = False
    _worker_pid = _time_accepted = _terminated = None
    _on_timeout_set = _on_timeout_cancel = None

    def __init__(
        self,
        pool: Any,
        callback: Callable[..., Any] | None = None,
        error_callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        timeout_callback: Callable[..., Any] | None = None,
        waitforslot: bool | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        lost_worker_timeout: float | None = None,
        callbacks_propagate: Iterable[type[BaseException]] = (),
        correlation_id: str | None = None,
    ) -> None:
        self.correlation_id = correlation_id
        self._mutex = threading.Lock()
        self._event = _Flag()
        self._job = next(billiard_pool.job_counter)
        self._cache = pool._cache
        self._callback, self._error_callback = callback, error_callback
        self._accept_callback, self._timeout_callback = accept_callback, timeout_callback
        self._soft_timeout = soft_timeout or pool.soft_timeout
        self._timeout = timeout or pool.timeout
        self._lost_worker_timeout = lost_worker_timeout or pool.lost_worker_timeout
        self._callbacks_propagate = callbacks_propagate or ()
        self._send_ack = None
        if self._soft_timeout or self._timeout:
            self._on_timeout_set = pool.on_timeout_set
            self._on_timeout_cancel = pool.on_timeout_cancel
        self._cache[self._job] = self


class MakesJobs:
    """Mixed into Celery's ``AsynPool``: how a job is handed to it."""

    threads: bool
    synack: bool
    putlocks: bool
    _quick_put: Callable[[Any], None]
    _state: Any

    def apply_async(
        self, func: Any, args: Any = (), kwds: Any = None, *more: Any, **options: Any
    ) -> Any:
        """As billiard's, which goes on where threads or other processes have a say in it."""
        waits, kwds = options.get("waitforslot"), kwds or {}
        if (
            self._state != RUN
            or self.threads
            or self.synack
            or more
            or (self.putlocks if waits is None else waits)
        ):
            return super().apply_async(  # type: ignore[misc]
                func, args, kwds, *more, **options
            )
        job = Job(self, **options)
        self._quick_put((TASK, (job._job, None, func, args, kwds)))
        return job
