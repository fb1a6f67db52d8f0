"""Run by ``test_green_locks`` in a process of its own: ``python green_libraries.py gevent``.

Locks of libraries, which real threads and the greenlets of the main thread fight for.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
from typing import Any

if sys.argv[1] == "gevent":
    from gevent import monkey

    monkey.patch_all()
    from gevent import sleep, spawn
else:
    import eventlet

    eventlet.monkey_patch()
    from eventlet import sleep, spawn

from celery_graceful.system import native

TURNS = 300
locks: dict[str, Any] = {
    "lock": threading.Lock(),
    "rlock": threading.RLock(),
    "semaphore": threading.BoundedSemaphore(1),
}
sums = dict.fromkeys(locks, 0)
failed: list[object] = []


def add(name: str, wait: Any) -> None:
    """Lets others run within the lock: now and then a greenlet holds it over a switch."""
    for turn in range(TURNS):
        with locks[name]:
            before = sums[name]
            wait(0.001 if turn % 10 == 0 else 0)
            sums[name] = before + 1
        if not turn % 7:
            wait(0)


def in_thread(name: str) -> None:
    try:
        add(name, native.pause)
    except BaseException as exc:
        failed.append(exc)


def limits() -> None:
    """As ever: no wait is longer than it may be, and what is free is taken at once."""
    lock = threading.Lock()
    assert lock.acquire(False)
    assert not lock.acquire(False)
    assert not lock.acquire(True, 0.05)
    threads = [native.start_thread(lambda: native.pause(0.05) or lock.release(), "a test")]
    assert lock.acquire(True, 60), "released by a thread"
    lock.release()
    for wrong in ((True, -2), (False, 1)):
        try:
            lock.acquire(*wrong)
        except ValueError:
            pass
        else:
            raise AssertionError(wrong)
    try:
        lock.release()
    except RuntimeError:
        pass
    else:
        raise AssertionError("released twice")
    while not threads[0].wait(0.0):
        sleep(0.01)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(100, exit=True)
    threads = [native.start_thread(lambda n=n: in_thread(n), "a test") for n in [*locks, *locks]]
    greenlets = [spawn(add, name, sleep) for name in [*locks, *locks, *locks]]
    greenlets.append(spawn(limits))
    spawn(lambda: [sleep(0.05) for _ in range(2000)])  # a hub that has nothing else gives up
    for each in greenlets:
        (each.get if hasattr(each, "get") else each.wait)()
    while not all(each.wait(0.0) for each in threads):
        sleep(0.01)
    assert not failed, failed
    assert set(sums.values()) == {5 * TURNS}, sums
    faulthandler.cancel_dump_traceback_later()
    print("shared", flush=True)
    native.original("os", "_exit")(0)
