"""What runs at the end of a process: exit callbacks, and the closing of resources.

Whoever ends a process calls ``run``: a pool's child before it leaves, the worker when all of
its tasks and children are done, the last resort of a drain, ``atexit``, multiprocessing in its
children. What has run is gone from the registry, so it does not matter how many of them come by.
What is registered later, or opened again, runs at the next of them.

The order in one process: callbacks, the newest first (those of scope ``worker`` after the
others), then the open resources, the one that was opened last first. So a callback may use
any resource.

A fork inherits the callbacks: each process in their scope runs them. It does not inherit
resources: in the child they are not open, and what the parent opened is left alone.

There is no lock around the registry: an insertion into a dict and a ``pop`` are one step
each, so it can be used from threads, hubs and signal handlers, and no fork finds it locked.
"""

from __future__ import annotations

import atexit
import inspect
import itertools
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial, update_wrapper
from multiprocessing import get_start_method, parent_process
from multiprocessing.util import Finalize, register_after_fork
from numbers import Real
from typing import Any, Literal, get_args

from celery_graceful.cleanup import time_limit
from celery_graceful.system import native
from celery_graceful.system.arguments import check_call, name_of
from celery_graceful.system.process import Slot, emptied, itself, kept
from celery_graceful.timeline import worker_state

__all__ = [
    "DEFAULT_TIMEOUT",
    "Entry",
    "ExitHandle",
    "Scope",
    "check",
    "check_result",
    "enter",
    "run",
    "time_left",
]

Scope = Literal["process", "worker", "everywhere"]

# Not Celery's get_logger: its NullHandler would keep what happens in a script from stderr.
logger = logging.getLogger(__name__)

#: Seconds that all that runs at the end of one process may take, unless set otherwise.
DEFAULT_TIMEOUT = 5.0

#: Reads ``graceful_exit_timeout``; set by ``Graceful`` when it is first asked for a cleanup.
exit_timeout: Slot[Callable[[], float]] = Slot(
    "exit timeout", lambda: lambda: DEFAULT_TIMEOUT, in_fork=kept
)

#: Shares of the time until a stopping worker's last resort: children have to be gone before
#: the main process has its turn.
CHILD_SHARE, MAIN_SHARE = 0.5, 0.85

#: Seconds that there are for a start in any case, however late.
LEAST = 0.1

#: Seconds after its time limit in which a call that is being ended may get out.
PATIENCE = 0.25

_CALLBACK, _WORKER_CALLBACK, _RESOURCE = range(3)

#: The scopes that this process is in; see ``enter``.
_scopes: Slot[frozenset[str]] = Slot("scopes", lambda: frozenset({"everywhere"}), in_fork=emptied)


def _leave_to_parent(entries: Slot[dict[int, Entry]]) -> None:
    """What the parent has open is not open here."""
    for entry in list(entries.value.values()):
        if entry.on_fork is not None and entry.take():
            entry.on_fork()


#: What has to run, by the order in which it came.
_entries: Slot[dict[int, Entry]] = Slot("cleanups", dict, in_fork=_leave_to_parent)
_keys = itertools.count()


class _Queue:
    """Those that walk through them, and wait for each other."""

    def __init__(self) -> None:
        self.lock = native.Lock()
        self.last: _Walk | None = None


_queue = Slot("walks", _Queue, in_fork=emptied)


def enter(*scopes: Scope) -> None:
    """Tell what this process is: it runs tasks (``process``), is a worker's main one, or both.

    A process that nobody told, and each fork until it is told, is in ``everywhere`` alone.
    """
    itself.fill(_scopes, frozenset({"everywhere", *scopes}))


def run(*, end: float | None = None, on_stuck: Callable[[], Any] | None = None) -> None:
    """Run what is left to run at the end of this process. Never raises.

    Args:
        end: When it has to be over, on the monotonic clock; otherwise ``graceful_exit_timeout``
            from now, or what the hard deadline of a stopping worker leaves if that is less.
        on_stuck: Called when one call cannot be ended and all others are done, in a thread
            other than the caller's, which is stuck in that call.
    """
    queue = _queue.value
    if queue.last is None and not _left():
        return
    walk = _Walk(_end() if end is None else end, on_stuck)
    with queue.lock:
        before, queue.last = queue.last, walk
    if before is not None:  # several paths lead here: one after the other, in order
        before.wait(max(walk.end, before.latest))
    try:
        if not _left():
            return
        if time_limit.reachable():
            walk.here()
        else:
            walk.in_threads()
    finally:
        walk.over()


def time_left() -> float:
    """Seconds that ``run`` would give itself now."""
    return _end() - time.monotonic()


def _end() -> float:
    now = time.monotonic()
    try:
        end = now + exit_timeout.value()
    except Exception as exc:
        logger.error("graceful_exit_timeout: %s", exc)
        end = now + DEFAULT_TIMEOUT
    board = worker_state.board.value
    if board is not None and board.interrupted:
        share = MAIN_SHARE if "worker" in _scopes.value else CHILD_SHARE
        end = min(end, now + max(LEAST, share * (board.last_resort_at - now)))
    return end


class Entry:
    """One call that has to be made, once.

    Args:
        fn: What to call.
        name: What people read in the log.
        timeout: Seconds that it may take.
        scope: In which processes; ``None`` is this one.
        on_fork: It closes a resource: a forked child does not inherit the call, but makes
            this one instead, at once.
    """

    def __init__(
        self,
        fn: Callable[[], Any],
        name: str,
        timeout: float | None,
        scope: Scope | None,
        on_fork: Callable[[], None] | None = None,
    ) -> None:
        self.fn = fn
        self.name = name
        self.timeout = math.inf if timeout is None else timeout
        self.scope = scope
        self.on_fork = on_fork
        if on_fork is not None:
            self.rank = _RESOURCE
        else:
            self.rank = _WORKER_CALLBACK if scope == "worker" else _CALLBACK
        self.key = next(_keys)
        _entries.value[self.key] = self

    def take(self) -> bool:
        """Take it off the registry. False: it has run, runs, or was cancelled."""
        return _entries.value.pop(self.key, None) is not None

    def due_here(self) -> bool:
        return self.scope is None or self.scope in _scopes.value

    def call(self) -> None:
        """Make it.

        Raises:
            TypeError: It has returned a coroutine, which nobody awaits.
            Exception: What it raised.
        """
        check_result(self.fn())

    def run(self, caller: Callable[[Callable[[], Any]], None], limit: float) -> None:
        outer = sys.exc_info()[1]
        try:
            caller(self.call)
        except time_limit.Overrun:
            self.complain(limit)
        except BaseException as exc:
            _forget_context(exc, outer)
            logger.exception("%s raised", self.name)

    def complain(self, limit: float) -> None:
        logger.error("%s did not end within %.2g s", self.name, limit)


def _forget_context(exc: BaseException | None, outer: BaseException | None) -> None:
    """The SystemExit that ends the process is no context of what a cleanup raises."""
    while exc is not None:
        if exc.__context__ is outer:
            exc.__context__ = None
        exc = exc.__context__


def _left() -> list[Entry]:
    """What is due in this process."""
    return [entry for entry in list(_entries.value.values()) if entry.due_here()]


class _Walk:
    """One walk through the registry, with a time limit on the whole and on each.

    It stays in the main thread when it starts there. Should a call be out of reach of its
    time limit, a watcher takes the others over.
    """

    def __init__(self, end: float, on_stuck: Callable[[], Any] | None) -> None:
        self.end = end
        #: What was kept for each is theirs also when the others took a bit too long.
        self.latest = end + max(LEAST, end - time.monotonic()) / 2
        self._on_stuck = on_stuck
        self._lock = native.Lock()
        self._is_over = False
        self._over = native.Latch()  # held until it is over
        self._over.acquire()
        self._overdue_at = math.inf
        self._running = ""
        self._taken_over = False

    def here(self) -> None:
        """Make the calls in the calling thread, which is ``time_limit.reachable``."""
        try:
            native.start_thread(self._watch, "graceful-exit")
        except RuntimeError:
            pass  # Python 3.12 and later start none at the end of the interpreter
        for entry, limit in self._turns():
            with self._lock:
                self._running = entry.name
                self._overdue_at = time.monotonic() + limit + min(PATIENCE, limit)
            entry.run(partial(time_limit.call, seconds=limit), limit)
            with self._lock:
                self._overdue_at = math.inf
                taken_over = self._taken_over
            if taken_over:
                self.wait(self.end)
                return

    def in_threads(self) -> None:
        """Make each call in a thread of its own, and leave it behind when its time is up."""
        for entry, limit in self._turns():
            over = native.Latch()
            over.acquire()
            native.start_thread(partial(_call_and_release, entry, over, limit), "graceful-exit")
            if not over.acquire(True, limit):
                entry.complain(limit)

    def wait(self, end: float) -> bool:
        """Wait until it is over, at most until ``end``; whether it is."""
        over = bool(self._over.acquire(True, max(0.0, end - time.monotonic())))
        if over:
            self._over.release()
        return over

    def over(self) -> None:
        """It is over, or left to those who come next."""
        with self._lock:
            if not self._is_over:
                self._is_over = True
                self._over.release()

    def _watch(self) -> None:
        while not self.wait(self._next_look()):
            with self._lock:
                self._taken_over = time.monotonic() >= self._overdue_at
                running = self._running
            if self._taken_over:
                logger.error("%s cannot be ended: going on without it", running)
                self.in_threads()
                if self._on_stuck is not None:
                    self._on_stuck()
                self.over()
                return

    def _next_look(self) -> float:
        # Capped: what begins while this waits can be due earlier.
        now = time.monotonic()
        return max(now + 0.001, min(now + 0.05, self._overdue_at))

    def _turns(self) -> Iterator[tuple[Entry, float]]:
        """Each entry that is ours, with the seconds that it may take."""
        # Half of the time is kept for all, the other half is for those who need it.
        seconds = max(LEAST, self.end - time.monotonic())
        kept_for_each = seconds / 2 / max(1, len(_left()))
        while left := _left():
            if time.monotonic() >= self.latest:
                if _queue.value.last is not self:
                    return  # the next one may have the time
                names = [entry.name for entry in left if entry.take()]
                logger.error("No time left at exit, so not run: %s", ", ".join(names))
                return
            entry = min(left, key=lambda entry: (entry.rank, -entry.key))
            if entry.take():
                # One that hangs must leave the others something.
                limit = self.end - time.monotonic() - kept_for_each * (len(left) - 1)
                yield entry, min(entry.timeout, max(limit, kept_for_each))


def _call_and_release(entry: Entry, over: Any, limit: float) -> None:
    try:
        entry.run(lambda fn: fn(), limit)
    finally:
        over.release()


# -- callbacks ---------------------------------------------------------------------


class ExitHandle:
    """A registered exit callback. Calling it calls the function, and nothing else.

    Args:
        fn: The function, without its arguments.
        args: Its positional arguments at exit.
        kwargs: Its keyword arguments at exit.
        scope: In which processes it runs.
        timeout: Seconds that it may take; ``None`` is what there is.

    Raises:
        TypeError: ``fn`` is no plain callable.
        ValueError: ``scope`` or ``timeout`` cannot be used.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        scope: Scope,
        timeout: float | None,
    ) -> None:
        if scope not in get_args(Scope):
            raise ValueError(f"scope {scope!r} is none of {', '.join(get_args(Scope))}")
        check(fn, timeout)
        self._fn = fn
        update_wrapper(self, fn, updated=())
        self._entry = Entry(
            partial(fn, *args, **kwargs), f"Exit callback {name_of(fn)}", timeout, scope
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._fn(*args, **kwargs)

    def cancel(self) -> bool:
        """Do not run it at the end of this process.

        Returns:
            Whether that was in time: False when it has run, runs, or was cancelled before.
        """
        return self._entry.take()


def check_result(result: Any) -> None:
    """Refuse a coroutine that a plain function, a lambda say, has returned: nobody awaits it.

    Raises:
        TypeError: It is one.
    """
    if inspect.iscoroutine(result):
        check(result, None)


def check(fn: Any, timeout: float | None, *, may_yield: bool = False) -> None:
    """Refuse what cannot be called at exit, or with this time limit.

    Raises:
        TypeError: ``fn`` is no plain callable.
        ValueError: ``timeout`` is no finite number of seconds above zero.
    """
    check_call(
        "at exit",
        fn,
        why_not_async="no event loop runs at the end of a process",
        why_no_generator=None
        if may_yield
        else "its body would not run; what is closed behind a yield is a `graceful.resource`",
    )
    number = isinstance(timeout, Real) and not isinstance(timeout, bool)
    if timeout is not None and not (number and timeout > 0 and math.isfinite(timeout)):
        raise ValueError(f"timeout {timeout!r} is no finite number of seconds above zero")


def _at_exit() -> None:
    # A worker has its own turn after its children have ended; see ``bootsteps``.
    if "worker" not in _scopes.value:
        run()


def _before_os_exit(_: object = None) -> None:
    """Children of multiprocessing and billiard run finalizers, and leave without ``atexit``.

    Called in such a child when those of its parent have been forgotten, once for both: billiard has
    those of multiprocessing. At 15 the child's pools are ended, at 10 its queues are closed.
    """
    if os.getpid() == _imported_in and get_start_method(allow_none=True) == "spawn":
        return  # it comes to ``atexit``, and its threads have ended then
    Finalize(None, _at_exit, exitpriority=100)


_imported_in = os.getpid()
atexit.register(_at_exit)
register_after_fork(_before_os_exit, _before_os_exit)
if parent_process() is not None:  # it has begun already
    _before_os_exit()
