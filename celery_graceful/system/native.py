"""Real threads, locks and waits, also where gevent or eventlet has patched the originals.

The watch over a drain must work while the hub of a green pool hangs, so it must not run on
that hub itself.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from itertools import repeat
from typing import Any, cast

from celery_graceful.system import green_locks
from celery_graceful.system.patched import (
    hub_of_thread,
    is_gevent,
    is_green,
    original,
)

__all__ = [
    "SILENT",
    "Doorbell",
    "ForkGate",
    "Latch",
    "Lock",
    "Thread",
    "bounded",
    "bounded_all",
    "capped",
    "in_main_thread",
    "is_alive",
    "is_gevent",
    "is_green",
    "lock_maker",
    "original",
    "pause",
    "start_thread",
    "thread_ident",
]


logger = logging.getLogger(__name__)


class Thread:
    """A daemon thread of the operating system that runs ``target``."""

    def __init__(self, target: Callable[[], None], name: str) -> None:
        self._running = Latch()
        self._running.acquire()

        def run() -> None:
            try:
                target()
            finally:
                self._running.release()

        green_locks.share()
        if is_gevent():
            # threading.Thread would start a greenlet; the function below it does not.
            original("_thread", "start_new_thread")(run, ())
        else:
            original("threading", "Thread")(target=run, name=name, daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Wait for its end, for up to ``seconds``; whether it has come."""
        ended = bool(self._running.acquire(True, seconds))
        if ended:
            self._running.release()
        return ended


def start_thread(target: Callable[[], None], name: str) -> Thread:
    """Run ``target`` in a daemon thread of the operating system."""
    return Thread(target, name)


def thread_ident() -> int:
    """Identity of the calling thread of the operating system."""
    return int(original("_thread", "get_ident")())


def in_main_thread() -> bool:
    """Whether signal handlers can be set here; eventlet's ``threading`` cannot tell."""
    try:
        signal.set_wakeup_fd(signal.set_wakeup_fd(-1))
    except ValueError:
        return False
    return True


def Lock() -> Any:
    """A lock between real threads. Hold it for a few instructions, never over a wait.

    Even then a finalizer may run in between, wait, and so lead to another greenlet of this thread.
    """
    return lock_maker()()


def lock_maker() -> Callable[[], Any]:
    """What makes such locks, for as long as nobody patches this process who has not yet."""
    return _GreenLock if is_green() else cast("Callable[[], Any]", _allocate_lock())


def Latch() -> Any:
    """A lock that is released elsewhere, to be waited for in a real thread; not for greenlets."""
    return _allocate_lock()()


@cache
def _allocate_lock() -> Any:
    return original("_thread", "allocate_lock")


class _GreenLock:
    """A lock that a greenlet of the same thread may hold, who cannot go on while we wait for it.

    It stands still where a finalizer waits that the garbage collector has run there. So who waits
    lets others run. Where nobody has to it is nearly as fast as the lock inside.
    """

    __slots__ = ("__exit__", "_attempts", "_lock", "locked", "release")

    def __init__(self) -> None:
        self._lock = lock = _allocate_lock()()
        self._attempts = map(lock.acquire, _WITHOUT_WAITING)
        self.locked, self.release = lock.locked, lock.release
        #: In C as the attempts are: no signal handler can raise in it, and leave the lock held.
        self.__exit__: Callable[..., None] = lock.__exit__

    def __enter__(self) -> None:
        # Between an attempt and the body of ``with`` there is no call, at whose end handlers run.
        waits = None
        for acquired in self._attempts:
            if acquired:
                return
            waits = waits or _turns()
            next(waits)

    def acquire(self, blocking: bool = True) -> bool:
        if not blocking:
            return bool(self._lock.acquire(False))
        self.__enter__()
        return True


_WITHOUT_WAITING = repeat(False)

#: Seconds between attempts, at first and at last; and for which a hub, which cannot let others run,
#: waits for who may be one of its own greenlets.
SOON, LATER, HUB_PATIENCE = 0.0002, 0.01, 1.0


def _turns() -> Iterator[None]:
    """Of others, while a lock is held."""
    began = time.monotonic()
    pause(SOON)  # held by a real thread, most often, for some microseconds
    yield
    seconds = SOON
    while True:
        has_hub, sleep = hub_of_thread()
        if sleep is not None:
            sleep(seconds)
        elif not has_hub or time.monotonic() < began + HUB_PATIENCE:
            pause(seconds)
        else:
            raise RuntimeError("A hub waits for a lock that one of its own greenlets holds")
        seconds = min(1.2 * seconds, LATER)
        yield


#: Seconds of one wait at most: poll counts milliseconds in an int, which are 24.8 days, and locks
#: and sleeps have limits of their own. Who has waited looks at the clock again.
LONGEST_WAIT = 86_400.0


def capped(seconds: float) -> float:
    """Seconds that can be waited for: not below zero, and a day at most."""
    return min(max(0.0, seconds), LONGEST_WAIT)


def pause(seconds: float) -> None:
    """Sleep in a real thread, for a day at most."""
    original("time", "sleep")(capped(seconds))


def is_alive(pid: int) -> bool:
    """Whether there is a process of that id that we may signal; a zombie is one."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


class Doorbell:
    """A pipe: rung from anywhere (a signal handler too), waited for in a real thread.

    What is rung is one byte, and bytes are kept until they are read. It is closed with its last
    reference, so nobody who rings writes into what has taken its number since.
    """

    read_fd = write_fd = -1
    _pid = 0

    def __init__(self) -> None:
        self._pid = os.getpid()
        # eventlet's os.write may wait in the hub, which a signal handler must not.
        self._read, self._write = original("os", "read"), original("os", "write")
        self._poll = original("select", "poll")
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        os.set_blocking(self.write_fd, False)

    def ring(self, code: bytes = b".") -> None:
        """Ring. Never blocks: a full pipe has been rung often enough."""
        try:
            self._write(self.write_fd, code)
        except (BlockingIOError, OSError):
            pass

    def wait(self, timeout: float | None) -> bytes:
        """Wait for up to ``timeout`` seconds, a day at most, in a real thread.

        Returns:
            What was rung.
        """
        poller = self._poll()
        poller.register(self.read_fd, 1)  # POLLIN
        poller.poll(None if timeout is None else capped(timeout) * 1000)
        return self.take()

    def take(self) -> bytes:
        """What was rung since the last time, without waiting."""
        try:
            return cast(bytes, self._read(self.read_fd, 4096))
        except BlockingIOError:
            return b""

    def __del__(self, close: Any = os.close, getpid: Any = os.getpid) -> None:
        if self._pid == getpid():  # a child may have closed all that it inherited
            for fd in (self.read_fd, self.write_fd):
                close(fd)


class _Silent(Doorbell):
    """Takes the place of one that nobody listens to any more."""

    def __init__(self) -> None:
        """Without a pipe."""

    def ring(self, code: bytes = b".") -> None:
        pass

    def wait(self, timeout: float | None) -> bytes:
        return b""

    def take(self) -> bytes:
        return b""


#: A doorbell that is none.
SILENT: Doorbell = _Silent()


class ForkGate:
    """Keeps forks away from what threads are in the middle of.

    A child that is forked while a thread of its parent holds a lock, that of a connection pool or
    of an import, finds that lock held for ever. The thread that forks is not waited for: what one
    of its greenlets is in the middle of cannot go on before the fork.
    """

    #: Seconds that a fork waits at most.
    PATIENCE = 1.0

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(before=self._close, after_in_parent=self._open)
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        #: Threads that are inside, each as often as it is. Without a lock: a finalizer that the
        #: garbage collector runs in between may lead to another greenlet of this thread, which
        #: would wait for that lock for ever. Each step is atomic.
        self._inside: list[int] = []
        #: The thread that forks, if one does.
        self._closed_by = 0

    def __enter__(self) -> None:
        me = thread_ident()
        self._inside.append(me)
        # Looked for afterwards: who closes it looks who is inside afterwards.
        while self._closed_by not in (0, me):
            self._inside.remove(me)
            pause(0.001)
            self._inside.append(me)

    def __exit__(self, *exc_info: object) -> None:
        with suppress(ValueError):  # a child that was forked in between
            self._inside.remove(thread_ident())

    def _close(self) -> None:
        self._closed_by = thread_ident()
        for _ in range(int(self.PATIENCE * 1000)):
            if not set(self._inside) - {thread_ident()}:
                return
            pause(0.001)

    def _open(self) -> None:
        self._closed_by = 0


def bounded(call: Callable[[], None], seconds: float) -> bool:
    """Run ``call`` in a real thread of its own for up to ``seconds``; whether it has ended.

    What it raises is logged.
    """
    return bounded_all([call], seconds)


def bounded_all(calls: Iterable[Callable[[], None]], seconds: float) -> bool:
    """As ``bounded``, for several calls side by side; whether all have ended."""
    end = time.monotonic() + seconds
    running = [_start(call) for call in calls]
    return all(each.acquire(timeout=capped(end - time.monotonic())) for each in running)


def _start(call: Callable[[], None]) -> Any:
    running = Latch()
    running.acquire()

    def run() -> None:
        try:
            call()
        except Exception as exc:
            logger.error("%r", exc, exc_info=True)
        finally:
            running.release()

    start_thread(run, "graceful-bounded")
    return running
