"""What a task sees of an interrupt. Inert, and cheap, outside of a worker.

All functions may be called from code that holds no task; a ``GracefulTask`` offers them as
methods and properties.
"""

from __future__ import annotations

import inspect
import os
import selectors
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial, wraps
from typing import Any, TypeVar, overload

from celery.utils.log import get_logger

from celery_graceful.phases import Interrupt
from celery_graceful.runs.run import Run, current
from celery_graceful.system import native
from celery_graceful.system.arguments import check_call, check_seconds, name_of
from celery_graceful.system.process import Slot, emptied
from celery_graceful.timeline import worker_state

__all__ = [
    "Interrupt",
    "begin",
    "current_interrupt",
    "end",
    "interrupt_callback",
    "interrupted",
    "interruptible",
    "named_if_slow",
    "shield",
    "sleep",
    "wait_for_interrupt",
    "wake",
]

logger = get_logger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

#: Stands for a function that was not given.
_NOTHING: Any = object()

#: Seconds between two looks while the bell rings for others.
OTHERS_PAUSE = 0.05

#: A hook or callback that takes longer than this many seconds is named in the log.
SLOW_AFTER = 1.0


def interrupted() -> bool:
    """Whether the running task has to stop. A memory read."""
    return bool(worker_state.flag.value[0]) and current_interrupt() is not None


def current_interrupt() -> Interrupt | None:
    """The interrupt that is on, or ``None``; for code that is part of no run, the worker's."""
    return _interrupt_of(current())


def _interrupt_of(run: Run | None) -> Interrupt | None:
    return worker_state.worker_interrupt() if run is None else run.interrupt


class _Block(AbstractContextManager[None]):
    """A block that is also a decorator: each call of the function is one of its own."""

    __slots__ = ()

    def __call__(self, fn: F) -> F:
        return _decorated(type(self), fn)


def _decorated(block: type[_Block], fn: F) -> F:
    name = block.__name__.strip("_").lower()
    check_call(f"@{name}", fn, why_not_async=f"say `async with celery_graceful.aio.{name}()` in it")
    if inspect.isgeneratorfunction(fn):
        raise TypeError(f"@{name}: {name_of(fn)} is a generator: say `with {name}()` in it")

    @wraps(fn)
    def decorated(*args: Any, **kwargs: Any) -> Any:
        with block():
            return fn(*args, **kwargs)

    return decorated  # type: ignore[return-value]


class _Interruptible(_Block):
    # No generator: one that an exception hits at its very end is closed when that exception
    # is forgotten, and would reopen a block that was left long ago.
    __slots__ = ("_outer", "_run")

    def __init__(self) -> None:
        run = current()
        self._run = run if run is not None and run.graceful else None
        self._outer = self._run is not None and self._run.interruptible

    def __enter__(self) -> None:
        if self._run is not None:
            try:
                self._run.enter_block()
            except BaseException:
                self._run.leave_block(self._outer)
                raise

    def __exit__(self, *exc_info: object) -> None:
        if self._run is not None:
            self._run.leave_block(self._outer)


class _Shield(_Block):
    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: AbstractContextManager[None] | None = None

    def __enter__(self) -> None:
        run = current()
        if run is not None:
            self._held = run.shield()
            self._held.__enter__()

    def __exit__(self, *exc_info: Any) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.__exit__(*exc_info)


@overload
def interruptible() -> _Block: ...


@overload
def interruptible(fn: F, /) -> F: ...


def interruptible(fn: Any = _NOTHING, /) -> Any:
    """Inside it an interrupt raises ``Interrupted`` at once.

    ``with interruptible(): ...``, or ``@interruptible`` on a function, for its calls.

    Also out of a blocking call, where the pool allows it: prefork, solo, gevent and eventlet
    do; in the threads pool it is raised as soon as the interpreter gets control.

    Args:
        fn: As a decorator, the function.

    Raises:
        Interrupted: An interrupt is on, or came, and no shield is held.
        TypeError: ``fn`` is no plain function.
    """
    return _Interruptible() if fn is _NOTHING else _decorated(_Interruptible, fn)


@overload
def shield() -> _Block: ...


@overload
def shield(fn: F, /) -> F: ...


def shield(fn: Any = _NOTHING, /) -> Any:
    """Nothing is raised inside; an interrupt that came raises at the outermost exit.

    ``with shield(): ...``, or ``@shield`` on a function, for its calls. Shields nest.
    The hard deadline bounds them: what still runs then is given up.

    Args:
        fn: As a decorator, the function.

    Raises:
        Interrupted, ShutdownTimeLimit: At the exit, when one came while inside.
        TypeError: ``fn`` is no plain function.
    """
    return _Shield() if fn is _NOTHING else _decorated(_Shield, fn)


def sleep(seconds: float) -> None:
    """Sleep, and raise ``Interrupted`` the moment an interrupt comes.

    Inside a shield, or where no task runs, it just sleeps.

    Args:
        seconds: For how long; 0 is a safe point alone.

    Raises:
        Interrupted: An interrupt is on, or came.
        TypeError, ValueError: ``seconds`` is no number of 0 or more.
    """
    check_seconds("sleep", seconds)
    run = current()
    if run is None or not run.graceful or run.shielded:
        time.sleep(seconds)
        return
    if wait_for_interrupt(seconds):
        run.interrupt_here()


def wait_for_interrupt(timeout: float | None = None) -> bool:
    """Wait until an interrupt comes, for up to ``timeout`` seconds.

    Args:
        timeout: Seconds; ``None`` waits without limit.

    Returns:
        Whether an interrupt is on. Does not raise ``Interrupted``.

    Raises:
        TypeError, ValueError: ``timeout`` is no number of 0 or more.
        RuntimeError: There is no ``timeout``, and no worker in this process that could be stopped.
    """
    if timeout is not None:
        check_seconds("wait_for_interrupt", timeout)
    if interrupted():
        return True
    if worker_state.board.value is None:
        if timeout is None:
            raise RuntimeError(
                "wait_for_interrupt() without timeout would never end here: "
                "no worker runs in this process"
            )
        time.sleep(timeout)
        return False
    _wait_bell(timeout, interrupted)
    return interrupted()


# -- the bell of this process ------------------------------------------------------


class _Waiting:
    """Who waits for an interrupt in this process, and who is called back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.bell: native.Doorbell | None = None
        self.callbacks: list[_Callback] = []
        #: A thread calls them.
        self.dispatching = False


def _renew(waiting: Slot[_Waiting]) -> None:
    """What a task forks hears the bell of its parent, whose threads it has not."""
    waiting.value.lock = threading.Lock()
    waiting.value.dispatching = False
    for callback in waiting.value.callbacks:
        callback.leave_to_parent()


_waiting = Slot("waiting", _Waiting, in_fork=_renew)


def _get_bell() -> native.Doorbell:
    waiting = _waiting.value
    with waiting.lock:
        if waiting.bell is None:
            waiting.bell = native.Doorbell()
            if worker_state.flag.value[0]:
                waiting.bell.ring()
        return waiting.bell


def wake() -> None:
    """Wake all waits of this process. Safe in a signal handler."""
    bell = _waiting.value.bell
    if bell is not None and worker_state.flag.value[0]:
        bell.ring()


def begin() -> None:
    """This process is a pool's child: the bell that it has inherited is that of its parent."""
    emptied(_waiting)


def _wait_bell(timeout: float | None, until: Callable[[], bool]) -> None:
    # What is rung is never read: the bell stays audible for everybody. selectors is what
    # gevent and eventlet patch, so that this wait is theirs there.
    bell, run = _get_bell(), current()
    fd = os.dup(bell.read_fd)  # eventlet lets only one greenlet wait for a descriptor
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            end = None if timeout is None else time.monotonic() + timeout
            while not until():
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return
                if worker_state.flag.value[0]:  # it rang for others
                    time.sleep(OTHERS_PAUSE if left is None else min(left, OTHERS_PAUSE))
                    continue
                if run is not None and run.soft_limit_at is not None:
                    # What is raised in a thread from outside comes when that runs again.
                    soon = max(run.soft_limit_at - time.monotonic(), OTHERS_PAUSE)
                    run.raise_due()
                    left = soon if left is None else min(left, soon)
                if selector.select(left and native.capped(left)) and not worker_state.flag.value[0]:
                    bell.take()  # they are gone
    finally:
        os.close(fd)


def end() -> None:
    """A worker of this process has ended; without another one it is no worker any more."""
    if worker_state.board.value is not None:
        return
    waiting = _waiting.value
    with waiting.lock:
        bell, waiting.bell = waiting.bell, None
    if bell is not None:
        bell.ring()  # who waits looks, and closes it when it leaves


# -- callbacks ---------------------------------------------------------------------


class _Callback:
    def __init__(self, fn: Callable[[Interrupt], Any], run: Run | None) -> None:
        self.fn: Callable[[Interrupt], Any] | None = fn
        self.run = run
        self.lock = threading.Lock()
        self._begun = False

    def begin(self) -> bool:
        """In a thread of its own, if its interrupt is on: one that hangs keeps no others."""
        interrupt = None if self._begun else _interrupt_of(self.run)
        if interrupt is None:
            return False
        self._begun = True
        threading.Thread(target=self.call, args=(interrupt,), daemon=True).start()
        return True

    def call(self, interrupt: Interrupt) -> None:
        with self.lock:
            fn, self.fn = self.fn, None
            if fn is None:
                return
            name = getattr(fn, "__qualname__", repr(fn))
            try:
                with named_if_slow(f"interrupt callback {name}"):
                    fn(interrupt)
            except Exception:
                logger.exception("Interrupt callback %s raised", name)

    def leave_to_parent(self) -> None:
        """In a forked child: the parent's thread calls it; here only who leaves the block does."""
        self.lock, self._begun = threading.Lock(), True

    def cancel(self) -> None:
        with self.lock:  # waits for a call that is under way
            self.fn = None


def interrupt_callback(fn: Callable[[Interrupt], Any]) -> AbstractContextManager[None]:
    """``fn(interrupt)`` is called once when the interrupt comes, from another thread.

    Use it to end what the task waits for: kill a subprocess, close a stream. When an
    interrupt is on already it is called at once. When one came inside of the block, it has
    been called when the block is left. What it raises is logged.

    Args:
        fn: Gets the ``Interrupt``.

    Raises:
        TypeError: ``fn`` is no plain function.
    """
    check_call("interrupt_callback", fn, why_not_async="nobody would await it")
    return _calling_back(fn)


@contextmanager
def _calling_back(fn: Callable[[Interrupt], Any]) -> Iterator[None]:
    waiting = _waiting.value
    interrupt = current_interrupt()
    callback = _Callback(fn, current())
    if worker_state.board.value is None:
        yield
        return
    if interrupt is not None:
        callback.call(interrupt)
        yield
        return
    _get_bell()
    waiting.callbacks.append(callback)
    if not waiting.dispatching:
        waiting.dispatching = True
        dispatch = partial(_dispatch, waiting)
        threading.Thread(target=dispatch, name="graceful-callbacks", daemon=True).start()
    callback.begin()  # it came just now, and nobody saw the callback
    try:
        yield
    finally:
        waiting.callbacks.remove(callback)
        interrupt = current_interrupt()
        if interrupt is None:
            callback.cancel()
        else:
            callback.call(interrupt)  # it came while inside: once is once


def _dispatch(waiting: _Waiting) -> None:
    while not _is_over():  # what comes after that is called at once
        _wait_bell(None, partial(_begin, waiting.callbacks))
    waiting.dispatching = False


def _begin(callbacks: list[_Callback]) -> bool:
    """Call those whose interrupt is on; whether there is another round to wait for."""
    begun = [callback.begin() for callback in reversed(callbacks[:])]
    return any(begun) or _is_over()


def _is_over() -> bool:
    return worker_state.board.value is None or worker_state.is_stopping()


@contextmanager
def named_if_slow(what: str) -> Iterator[None]:
    """Name ``what`` in the log when it takes long, while it does so."""
    started = time.monotonic()
    timer = threading.Timer(
        SLOW_AFTER, logger.warning, ("%s takes long: %.0f s so far", what, SLOW_AFTER)
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        took = time.monotonic() - started
        if took > SLOW_AFTER:
            logger.warning("%s took %.1f s", what, took)
