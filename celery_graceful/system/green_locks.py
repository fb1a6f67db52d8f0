"""Locks of gevent and eventlet, where real threads want them too.

Libraries have such locks for what a whole process shares: logging's, kombu's for what it keeps of
an app, that of Celery's clock. eventlet makes them for the greenlets of one thread: a real thread
that waits for one lets the hub of the other fail ("Cannot switch to a different thread") and waits
for ever, as does a greenlet for one that a real thread has. With gevent they wake each other, but
not always: https://github.com/gevent/gevent/issues/2013, and 1744.

Here a real thread looks again and again, and so do greenlets for what a real thread has had.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from celery_graceful.system.patched import hub_of_thread, is_gevent, is_green, original

__all__ = ["share"]

#: Seconds between looks at a lock that real threads use, at first and at last; at another one,
#: should a thread begin to use it just now; for which a hub waits, which cannot let others run.
SOON, LATER, OTHERS, HUB_PATIENCE = 0.0005, 0.02, 1.0, 1.0

#: Takes a lock without waiting, for a greenlet that has to queue or does not.
Take = Callable[[Any, bool], bool]
#: Waits among the greenlets of the main thread, for so many seconds; whether it has the lock then.
Queue = Callable[[Any, float], bool]


def share() -> None:
    """Let real threads use them as well, from now on, where this process has such locks."""
    if is_green():
        (_of_gevent if is_gevent() else _of_eventlet)()


@cache
def _of_eventlet() -> None:
    from eventlet import getcurrent
    from eventlet.hubs import get_hub
    from eventlet.lock import Lock
    from eventlet.semaphore import Semaphore

    def take(lock: Any, has_to_queue: bool) -> bool:
        if lock.counter > 0 and not (has_to_queue and lock._waiters):
            lock.counter -= 1  # no call since it was looked at: nothing else has run
            return True
        return False

    def queue(lock: Any, seconds: float) -> bool:
        hub, me, waiters = get_hub(), getcurrent(), lock._waiters
        timer = hub.schedule_call_global(seconds, me.switch)
        waiters.append(me)
        try:
            hub.switch()
        finally:
            timer.cancel()
            if me in waiters:
                waiters.remove(me)
        return take(lock, False)

    at_home = _main_thread()
    wait = _waiting(at_home, take, queue)

    def acquire(self: Any, blocking: bool = True, timeout: float | None = None) -> bool:
        return wait(self, blocking, timeout)

    def release(self: Any, blocking: bool = True) -> bool:
        self.counter += 1
        if self._waiters and at_home():
            get_hub().schedule_call_global(0, self._do_acquire)
        return True

    def release_lock(self: Any, blocking: bool = True) -> bool:
        if self.counter > 0:
            raise RuntimeError("release unlocked lock")
        return release(self)

    for cls, method in ((Semaphore, acquire), (Semaphore, release), (Lock, release_lock)):
        setattr(cls, method.__name__.removesuffix("_lock"), method)


@cache
def _of_gevent() -> None:
    from gevent.lock import BoundedSemaphore
    from gevent.thread import LockType

    by_gevent, by_semaphore = LockType.acquire, BoundedSemaphore.acquire
    wait = _waiting(
        _main_thread(),
        lambda lock, has_to_queue: by_semaphore(lock, False),
        lambda lock, seconds: by_semaphore(lock, True, seconds),
    )

    def acquire(self: Any, blocking: bool = True, timeout: float | None = -1) -> bool:
        if not blocking:
            return bool(by_gevent(self, False, timeout))
        if timeout is not None and timeout > LockType._TIMEOUT_MAX:
            raise OverflowError("timeout value is too large")
        return wait(self, True, timeout)

    setattr(LockType, acquire.__name__, acquire)


def _main_thread() -> Callable[[], bool]:
    """Whether it runs. Who waits in a queue does so there: no other thread can tell its hub."""
    ident, home = original("_thread", "get_ident"), threading.main_thread().ident
    return lambda: ident() == home


def _waiting(
    at_home: Callable[[], bool], take: Take, queue: Queue
) -> Callable[[Any, bool, float | None], bool]:
    pause = original("time", "sleep")

    def acquire(lock: Any, blocking: bool, timeout: float | None) -> bool:
        if timeout == -1:
            timeout = None
        elif timeout is not None:
            if timeout < 0:
                raise ValueError("timeout value must be strictly positive")
            if not blocking:
                raise ValueError("can't specify timeout for non-blocking acquire")
        home = at_home()
        if not home:
            lock.abroad = True
        return take(lock, home and blocking) or (blocking and wait(lock, home, timeout))

    def wait(lock: Any, home: bool, timeout: float | None) -> bool:
        began, seconds = time.monotonic(), SOON
        while True:
            waited = time.monotonic() - began
            if timeout is not None and waited >= timeout:
                return False
            step = seconds if getattr(lock, "abroad", False) else OTHERS
            if timeout is not None:
                step = min(step, timeout - waited)
            has_hub, sleep = hub_of_thread()
            if home and sleep is not None:
                if queue(lock, step):
                    return True
            else:
                if has_hub and sleep is None and waited > HUB_PATIENCE:
                    raise RuntimeError("A hub waits for a lock that one of its greenlets holds")
                (sleep or pause)(min(step, LATER))
                if take(lock, False):
                    return True
            seconds = min(1.5 * seconds, LATER)

    return acquire
