"""Per-process resources: opened at first use, closed after the last task of the process."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, update_wrapper
from typing import Any, Generic, TypeVar

from celery_graceful.cleanup.callbacks import Entry, check, check_result
from celery_graceful.system.arguments import name_of

__all__ = ["Resource"]

T = TypeVar("T")


class _State:
    """A resource in one process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # the patched one under gevent and eventlet
        self.opening = False
        self.held: tuple[Any, Entry] | None = None


class Resource(Generic[T]):
    """Something that each process has one of: opened at first use, closed at its end.

    All threads of a process share it. After a fork the child opens its own.

    Args:
        acquire: Opens it; returns it, and what closes it.
        name: What people read in the log.
        timeout: Seconds that closing may take; ``None`` is what there is.
    """

    def __init__(
        self,
        acquire: Callable[[], tuple[T, Callable[[], Any]]],
        name: str,
        timeout: float | None,
    ) -> None:
        self._acquire = acquire
        self.name = name
        self._timeout = timeout
        self._states: dict[int, _State] = {}

    @classmethod
    def from_functions(
        cls,
        open: Callable[[], T],
        close: Callable[[T], Any],
        name: str | None = None,
        timeout: float | None = None,
    ) -> Resource[T]:
        """A resource that ``open()`` returns and ``close(resource)`` closes.

        Args:
            open: Called at its first use in a process.
            close: Called with it, after the last task of that process.
            name: For the log; without it that of ``open``.
            timeout: Seconds for ``close``; without it what is left of ``graceful_exit_timeout``.

        Raises:
            TypeError: ``open`` or ``close`` is no plain callable; at the first use: ``open()``
                has returned a coroutine.
            ValueError: ``timeout`` cannot be used.
        """
        check(open, timeout)
        check(close, timeout)

        def acquire() -> tuple[T, Callable[[], Any]]:
            value = open()
            check_result(value)
            return value, partial(close, value)

        return cls(acquire, name or name_of(open), timeout)

    @classmethod
    def from_generator(
        cls,
        fn: Callable[[], Iterator[T]],
        name: str | None = None,
        timeout: float | None = None,
    ) -> Resource[T]:
        """A resource that ``fn`` opens before its one ``yield``, and closes after it.

        Args:
            fn: The generator function.
            name: For the log; without it that of ``fn``.
            timeout: Seconds for its end; without it what is left of ``graceful_exit_timeout``.

        Raises:
            TypeError: ``fn`` is no generator function.
            ValueError: ``timeout`` cannot be used.
        """
        check(fn, timeout, may_yield=True)
        if not inspect.isgeneratorfunction(fn):
            raise TypeError(f"{name_of(fn)} is no generator function: it has to yield the resource")

        def acquire() -> tuple[T, Callable[[], Any]]:
            generator = fn()
            try:
                return next(generator), partial(close, generator)
            except StopIteration:
                raise RuntimeError(f"{name_of(fn)} did not yield") from None

        def close(generator: Iterator[T]) -> None:
            try:
                next(generator)
            except StopIteration:
                return
            raise RuntimeError(f"{name_of(fn)} yielded a second time")

        resource = cls(acquire, name or name_of(fn), timeout)
        update_wrapper(resource, fn, updated=())
        return resource

    def get(self) -> T:
        """The resource of this process, opened if need be.

        Raises:
            Exception: What opening it raised; the next use tries again.
        """
        state = self._state()
        held = state.held
        return self._opened(state) if held is None else held[0]

    @contextmanager
    def __call__(self) -> Iterator[T]:
        """``with db() as connection:``; leaving the block does not close it."""
        yield self.get()

    @property
    def is_open(self) -> bool:
        """Whether it is open in this process."""
        return self._state().held is not None

    def close(self) -> None:
        """Close it now, if it is open in this process. The next use opens it again.

        Raises:
            Exception: What closing it raised.
        """
        held = self._state().held
        if held is not None and held[1].take():
            held[1].call()

    def _state(self) -> _State:
        pid = os.getpid()
        return self._states.get(pid) or self._states.setdefault(pid, _State())

    def _opened(self, state: _State) -> T:
        with state.lock:
            if state.held is None:
                if state.opening:
                    raise RuntimeError(f"opening {self.name} needs {self.name}")
                state.opening = True
                try:
                    value, close = self._acquire()
                finally:
                    state.opening = False
                import ctypes  # noqa: F401 a forked child may need it, and must not import

                state.held = (
                    value,
                    Entry(
                        partial(self._closed, state, close),
                        f"Closing {self.name}",
                        timeout=self._timeout,
                        scope=None,
                        on_fork=self._leave_to_parent,
                    ),
                )
            value = state.held[0]
        return value

    @staticmethod
    def _closed(state: _State, close: Callable[[], Any]) -> Any:
        with state.lock:
            state.held = None
        return close()  # not under the lock: should it hang, others can still open anew

    def _leave_to_parent(self) -> None:
        """In a forked child: forget what the parent has open, and never finalize it here.

        A connection that is finalized says goodbye to its server, and a generator that is
        runs its ``finally``: on the parent's socket, in the parent's name.
        """
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._states))
        self._states = {}
