"""``checkin``: a check-in for code that is no task."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from types import TracebackType
from typing import Any, TypeVar

from celery_graceful.exceptions import Interrupted, ShutdownTimeLimit
from celery_graceful.monitors.monitor import Monitor
from celery_graceful.timeline import worker_state

__all__ = ["checkin"]

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

#: What is open in this context, the innermost last, each with the block that opened it.
_open: ContextVar[tuple[tuple[checkin, Any], ...]] = ContextVar("graceful_checkins", default=())


class checkin:
    """Report a block, or the calls of a function, to a monitor.

    ``with checkin("nightly"): ...``, or ``@checkin("nightly")`` on a function, async or not.
    One object may be used again, nested, and by several threads at once. What the block raises
    is passed on; ``SystemExit(0)`` is a success. When a worker's stop cuts it off, it is closed
    as ``on_interrupt`` of the monitor says, or else as an error: nobody goes on with it.

    Args:
        monitor: The monitor, or its slug.
        app: The Celery app whose settings say who reports; the current one by default.

    Raises:
        SettingsError: The slug cannot be used.
    """

    def __init__(self, monitor: str | Monitor, *, app: Any = None) -> None:
        self._monitor = monitor if isinstance(monitor, Monitor) else Monitor(monitor)
        self._app = app

    def __enter__(self) -> checkin:
        opened = None
        try:
            monitors = self._monitors()
            opened = monitors.of_block(self._monitor)
            monitors.dispatch.start(opened)
        except Exception:
            logger.exception("Check-in of %s", self._monitor.slug)
        _open.set((*_open.get(), (self, opened)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        entries = _open.get()
        index = max(i for i, (block, _) in enumerate(entries) if block is self)
        opened = entries[index][1]
        _open.set(entries[:index] + entries[index + 1 :])
        if opened is not None:
            try:
                status = _status(exc, opened.on_interrupt)
                self._monitors().dispatch.finish(opened, status, "" if exc is None else repr(exc))
            except Exception:
                logger.exception("Check-in of %s", self._monitor.slug)

    def __call__(self, fn: F) -> F:
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise TypeError(f"{fn!r} is a generator: use `with checkin(...)` around its loop")
        if inspect.iscoroutinefunction(fn):

            @wraps(fn)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await fn(*args, **kwargs)

        else:

            @wraps(fn)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return fn(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    def _monitors(self) -> Any:
        from celery.app import app_or_default

        from celery_graceful.monitors.registry import monitors_of

        return monitors_of(app_or_default(self._app))


def _status(exc: BaseException | None, on_interrupt: str | None) -> str:
    if exc is None:
        return "ok"
    stopped = isinstance(exc, (SystemExit, KeyboardInterrupt)) and worker_state.is_stopping()
    if stopped or isinstance(exc, (Interrupted, ShutdownTimeLimit)):
        return on_interrupt or "error"
    return "ok" if isinstance(exc, SystemExit) and not exc.code else "error"
