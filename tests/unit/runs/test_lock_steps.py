"""Where nothing may be raised in a thread from outside."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from celery_graceful.runs.lock_steps import _STEPS, is_at_lock
from tests.support.workers import wait_until

IMPORTS: Any = importlib._bootstrap


def stands(call: Callable[[], object], let_go: Callable[[], object]) -> bool:
    """Whether a thread that waits in ``call`` stands there."""
    thread = threading.Thread(target=call)
    thread.start()
    assert thread.ident is not None
    ident = thread.ident

    def waits() -> bool:
        frame = sys._current_frames().get(ident)
        return frame is not None and frame.f_code.co_name in WAITS

    try:
        wait_until(waits, "the thread waits")
        return is_at_lock(sys._current_frames()[ident])
    finally:
        let_go()
        thread.join()


#: The functions that threads of these tests come to wait in.
WAITS = ("acquire", "__enter__", "wait")


def test_handlers_of_the_log() -> None:
    handler = logging.Handler()
    assert handler.lock is not None
    handler.lock.acquire()
    assert stands(handler.acquire, handler.lock.release)


def test_their_lines_are_written_as_ever() -> None:
    code = """
import io, logging
from celery_graceful.runs import log_locks
log_locks.install()
class Bare(logging.StreamHandler):
    def createLock(self):
        self.lock = None
for kind in (logging.StreamHandler, Bare):
    out = kind(io.StringIO())
    out.addFilter(lambda record: "no" not in record.msg)
    rows = [out.handle(logging.makeLogRecord({"msg": text})) for text in ("yes", "no", "yes")]
    print(out.stream.getvalue().split(), [bool(row) for row in rows])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("['yes', 'yes'] [True, False, True]\n" * 2, "")


def test_conditions_and_imports() -> None:
    condition = threading.Condition(lock := threading.Lock())
    lock.acquire()
    assert stands(lambda: condition.__enter__(), lock.release)
    for function in (IMPORTS._ModuleLockManager.__enter__, IMPORTS._ModuleLock.acquire):
        assert function.__code__ in _STEPS


def test_who_waits_can_be_interrupted() -> None:
    event = threading.Event()
    assert not stands(event.wait, event.set)
