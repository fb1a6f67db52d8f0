"""What has to be sent to one server, and the thread that sends it.

Nobody waits for a server: a report is put here, and a thread sends it. While the server is
away reports are kept, in their order; what cannot be kept any longer is said.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

from celery_graceful.cleanup import callbacks
from celery_graceful.monitors.report import Dropped
from celery_graceful.system import native
from celery_graceful.system.log_thread import log
from celery_graceful.system.process import Slot, emptied

__all__ = ["Outbox"]

logger = logging.getLogger(__name__)

#: Reports that are kept at most, and seconds.
SIZE, AGE = 1000, 900.0

#: Seconds until a server that was away is tried again: the first time, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0

#: Seconds that the end of a process waits at most.
LAST_WAIT = 1.5

#: Seconds that the thread waits for the next report, before it ends: to start one costs more than
#: to wake it. And in the first of these: between looks whether one has come that can wait, for
#: which nobody wakes it: it would be in the way of the task that has just begun.
LINGER, LOOK, LOOKS = 1.0, 0.02, 0.1


class _Job(NamedTuple):
    expires: float
    send: Callable[[], None]
    skippable: bool


class Outbox:
    """Sends to one server, from a thread that lives while there is something to send.

    Under gevent and eventlet that thread is a greenlet.

    Args:
        name: Of the server, for people.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        #: The last attempt failed: nobody waits for it.
        self.away = False
        self._said: set[str] = set()
        self._exit: callbacks.Entry | None = None
        self._reset()
        _outboxes.value.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._bell, self._hurry = threading.Event(), threading.Event()
        # Not by Thread.join: eventlet's raises when its time is up, on Python 3.13.
        self._idle = threading.Event()
        self._idle.set()
        self._jobs: deque[_Job] = deque()
        #: From when on they are sent.
        self._due = inf
        #: The thread will look by itself, soon.
        self._looks = False
        self._thread: Any = None
        self.away = False

    def put(self, send: Callable[[], None], *, skippable: bool = False, after: float = 0.0) -> None:
        """Have ``send()`` called soon, and again for as long as the server is away.

        Args:
            send: Raises ``Dropped`` if there is no use in trying again.
            skippable: Not worth keeping while the server is away.
            after: Seconds that it may wait for another report, or for ``flush``.
        """
        if skippable and self.away:
            return
        if len(self._jobs) >= SIZE:
            self._say("its queue is full")
            return
        if self._exit is None:
            self._exit = callbacks.Entry(
                self._last_flush, f"Check-ins for {self.name}", None, "everywhere"
            )
        now = time.monotonic()
        self._jobs.append(_Job(now + AGE, send, skippable))
        if _at_home():  # else whoever comes next starts the greenlet, the end at the latest
            self._start(now + after)

    def _start(self, due: float) -> None:
        with self._lock:
            if not self._jobs:
                return
            sooner, self._due = due < self._due, min(self._due, due)
            self._idle.clear()
            looks = self._looks and due > time.monotonic()
            if self._thread is None or (sooner and not looks):
                self._bell.set()
            if self._thread is None:
                self._hurry.clear()
                thread = threading.Thread(
                    target=self._work, name=f"graceful-{self.name}", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is on its way out
                    self._idle.set()
                    return
                self._thread = thread  # its first step waits for our lock

    def flush(self, timeout: float) -> bool:
        """Wait until all has been sent, for up to ``timeout`` seconds; whether it has.

        Does not wait for a server that is away.
        """
        end = time.monotonic() + timeout
        if not self._idle.is_set() and _at_home():
            self._start(0.0)
        while not self._idle.is_set() and not self.away:
            # In slices: it may turn out to be away meanwhile.
            self._idle.wait(min(0.05, max(0.0, end - time.monotonic())))
            if time.monotonic() >= end:
                break
        return self._idle.is_set()

    def _last_flush(self) -> None:
        """At the end of the process: one more attempt, for a short time."""
        self._exit = None
        left = max(0.0, min(LAST_WAIT, 0.5 * callbacks.time_left()))
        if _at_home():
            self._start(0.0)
            self._hurry.set()
            self._idle.wait(left)
            self._hurry.clear()
        lost = sum(not job.skippable for job in list(self._jobs))
        if lost:
            log(
                logger,
                logging.WARNING,
                "%d check-ins were not sent to %s before the end",
                lost,
                self.name,
            )

    # -- the thread ------------------------------------------------------------------

    def _work(self) -> None:
        pause, until = FIRST_PAUSE, time.monotonic() + LINGER
        while True:
            with self._lock:
                self._bell.clear()
                now = time.monotonic()
                self._looks = not self._jobs and until - now > LINGER - LOOKS
                if not self._jobs:
                    self._due, left = inf, LOOK if self._looks else until - now
                    if self._hurry.is_set():
                        left = 0.0
                    self._idle.set()
                else:
                    # Where it is not known, another thread than ours has put it there.
                    left = 0.0 if self._due == inf else self._due - now
            if not self._jobs:
                if left > 0:
                    self._bell.wait(left)
                elif self._ends():
                    return
                continue
            if left > 0:
                self._bell.wait(left)
                continue
            is_done = self._send_first()
            until = time.monotonic() + LINGER
            if is_done:
                pause = FIRST_PAUSE
            elif self._hurry.is_set():
                with self._lock:
                    self._end()
                return
            else:
                self._hurry.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _send_first(self) -> bool:
        """Whether it is done with."""
        job = self._jobs[0]
        if time.monotonic() > job.expires:
            self._say("it was away for too long")
        elif not self._send(job.send):
            return False
        with self._lock:
            self._jobs.popleft()
        return True

    def _ends(self) -> bool:
        """Nobody has rung: whether there is nothing to wait for any more."""
        with self._lock:
            if not self._jobs and not self._bell.is_set():
                self._end()
                return True
        return False

    def _end(self) -> None:
        self._thread = None
        self._idle.set()

    def _send(self, send: Callable[[], None]) -> bool:
        """Whether it is done with: sent, or dropped."""
        try:
            send()
        except Dropped as exc:
            self._say(str(exc))
        except Exception as exc:
            if not self.away:
                self.away = True
                log(
                    logger,
                    logging.WARNING,
                    "Check-ins: %s does not answer: %r. Tasks go on, what has to be reported is "
                    "kept for a while",
                    self.name,
                    exc,
                )
            return False
        if self.away:
            self.away = False
            log(logger, logging.WARNING, "Check-ins: %s is back", self.name)
        return True

    def _say(self, reason: str) -> None:
        """Say once why something was dropped."""
        if reason not in self._said:
            self._said.add(reason)
            log(
                logger,
                logging.WARNING,
                "Check-ins are dropped, not sent to %s: %s (said once)",
                self.name,
                reason,
            )


#: The thread whose hub runs our greenlets, where there are any.
_home = Slot("hub's thread", native.thread_ident, in_fork=emptied)


def _at_home() -> bool:
    """Whether greenlets can be started, and their locks taken, in this thread."""
    return not native.is_green() or native.thread_ident() == _home.value


def _reset(outboxes: Slot[weakref.WeakSet[Outbox]]) -> None:
    """What the parent has to send is the parent's."""
    for outbox in list(outboxes.value):
        outbox._reset()


_outboxes: Slot[weakref.WeakSet[Outbox]] = Slot("outboxes", weakref.WeakSet, in_fork=_reset)
