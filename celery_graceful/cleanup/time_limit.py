"""A time limit on a call that stays in its own thread or greenlet.

What is closed at exit often belongs to the thread that opened it (Django's connections,
sqlite3, a hub's sockets), so the call is not moved to a helper thread. In the main thread an
alarm (SIGALRM) raises out of whatever waits; where gevent or eventlet rule, their own
``Timeout`` does. Both work at ``atexit`` too, when Python 3.12 starts no threads any more.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

from celery_graceful.system import native
from celery_graceful.system.loaded import loaded

__all__ = ["Overrun", "call", "reachable"]

#: Seconds after which an alarm that was swallowed (a bare ``except``, a ``__del__``) comes again.
REPEAT = 0.2


class Overrun(BaseException):
    """Raised in a call whose time is up. No ``except Exception`` swallows it."""


def reachable() -> bool:
    """Whether a call of the calling thread can be limited: in the main thread alone."""
    main = threading.main_thread()
    # Under eventlet the main thread does not recognise itself, but its ident is the real one.
    return threading.current_thread() is main or native.thread_ident() == main.ident


def call(fn: Callable[[], Any], seconds: float) -> None:
    """Call ``fn`` for up to ``seconds``; in a thread that is ``reachable``.

    Raises:
        Overrun: The time was up. A call that waits in C without returning to the interpreter
            for a signal, or on a hub without yielding to it, is not ended by it.
    """
    timeout = _hub_timeout()
    if timeout is None:
        _call_by_alarm(fn, max(seconds, 0.001))
    else:
        with timeout(max(seconds, 0.001), Overrun()):
            fn()


def _hub_timeout() -> Any:
    if native.is_gevent():
        from gevent import Timeout as GeventTimeout

        return GeventTimeout
    is_monkey_patched = loaded("eventlet.patcher", "is_monkey_patched")
    if is_monkey_patched is not None and is_monkey_patched("thread"):
        from eventlet import Timeout as EventletTimeout

        return EventletTimeout
    return None


def _call_by_alarm(fn: Callable[[], Any], seconds: float) -> None:
    inside = False

    def on_alarm(*_: Any) -> None:
        if inside:
            raise Overrun

    previous = signal.signal(signal.SIGALRM, on_alarm)
    try:
        inside = True
        signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT)
        fn()
    finally:
        inside = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if previous is None else previous)
