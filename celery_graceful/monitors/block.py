"""``checkin``: a check-in for code that is no task."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from types import TracebackType
from typing import Any, TypeVar

from celery_graceful.exceptions import Interrupted, ShutdownTimeLimit
from celery_graceful.monitors.check_in import CheckIn
from celery_graceful.monitors.monitor import Monitor
from celery_graceful.timeline import worker_state

__all__ = ["checkin"]

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(eq=False)
class _Entry:
    """One time that a block was entered, and has not been left."""

    block: checkin
    check_in: CheckIn | None


#: What was opened in this context, the innermost last.
_open: ContextVar[tuple[_Entry, ...]] = ContextVar("graceful_checkins", default=())


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
        #: What is open in all contexts.
        self._entries: list[_Entry] = []

    def __enter__(self) -> checkin:
        opened = None
        try:
            monitors = self._monitors()
            opened = monitors.of_block(self._monitor)
            monitors.dispatch.start(opened)
        except Exception:
            logger.exception("Check-in of %s", self._monitor.slug)
        entry = _Entry(self, opened)
        self._entries.append(entry)
        _open.set((*_still_open(), entry))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        opened = self._take()
        if opened is not None:
            try:
                status = _status(exc, opened.on_interrupt)
                self._monitors().dispatch.finish(opened, status, _text(exc))
            except Exception:
                logger.exception("Check-in of %s", self._monitor.slug)

    def _take(self) -> CheckIn | None:
        """The check-in to close: of this context, else the last one of any.

        A generator may be stepped, and so the block be left, in another context than it was
        entered in: by another thread or asyncio task.
        """
        entries = [entry for entry in _still_open() if entry.block is self]
        for entry in (*reversed(entries), *reversed(self._entries)):
            with suppress(ValueError):  # another thread was faster
                self._entries.remove(entry)
                _open.set(_still_open())
                return entry.check_in
        return None

    def __call__(self, fn: F) -> F:
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise TypeError(f"{fn!r} is a generator: use `with checkin(...)` around its loop")
        if inspect.iscoroutinefunction(fn):

            @wraps(fn)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with checkin(self._monitor, app=self._app):
                    return await fn(*args, **kwargs)

        else:

            @wraps(fn)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with checkin(self._monitor, app=self._app):
                    return fn(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    def _monitors(self) -> Any:
        from celery.app import app_or_default

        from celery_graceful.monitors.registry import monitors_of

        return monitors_of(app_or_default(self._app))


def _still_open() -> tuple[_Entry, ...]:
    """What of this context was not closed in another one."""
    return tuple(entry for entry in _open.get() if entry in entry.block._entries)


def _text(exc: BaseException | None) -> str:
    try:
        return "" if exc is None else repr(exc)
    except Exception:
        return type(exc).__name__


def _status(exc: BaseException | None, on_interrupt: str | None) -> str:
    if exc is None:
        return "ok"
    stopped = isinstance(exc, (SystemExit, KeyboardInterrupt)) and worker_state.is_stopping()
    if stopped or isinstance(exc, (Interrupted, ShutdownTimeLimit)):
        return on_interrupt or "error"
    return "ok" if isinstance(exc, SystemExit) and not exc.code else "error"
