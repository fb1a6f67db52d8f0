"""Heartbeats of long runs, from the main process, through the whole drain."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from celery_graceful.monitors.check_in import CheckIn

__all__ = ["Heartbeats", "interval_of"]

#: Seconds between two heartbeats of a run, at least.
AT_LEAST = 60.0

#: Minutes that a server gives a run of which it knows no better.
MAX_RUNTIME = 30

#: Heartbeats of one monitor a minute; a server takes 6 check-ins of all kinds.
A_MINUTE = 3


def interval_of(check_in: CheckIn) -> float:
    """Seconds between two heartbeats: three in the time that the run may take."""
    config = check_in.config or {}
    minutes = check_in.monitor.max_runtime or config.get("max_runtime") or MAX_RUNTIME
    return max(AT_LEAST, 60.0 * minutes / 3)


class Heartbeats:
    """Beats for what runs, from a thread that lives while there is something to beat for.

    Under gevent and eventlet that thread is a greenlet.

    Args:
        running: The check-ins of what runs now.
        beat: Sends a heartbeat; returns at once.
    """

    def __init__(
        self, running: Callable[[], Iterable[CheckIn]], beat: Callable[[CheckIn], None]
    ) -> None:
        self._running = running
        self._beat = beat
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._next: dict[CheckIn, float] = {}
        self._sent: dict[str, deque[float]] = {}

    def begin(self) -> None:
        """Something with a check-in has begun to run."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="graceful-check-ins", daemon=True
                )
                self._thread.start()

    def end(self) -> None:
        """The process goes on without a worker: end the thread."""
        self._ended.set()

    def _work(self) -> None:
        while not self._ended.is_set():
            with self._lock:
                wait = self.step(time.monotonic())
                if wait is None:
                    self._thread = None
                    return
            self._ended.wait(wait)

    def step(self, now: float) -> float | None:
        """Send what is due; returns the seconds until the next look, ``None`` if nothing runs."""
        running = list(self._running())
        self._next = {
            check_in: self._next.get(check_in, now + interval_of(check_in)) for check_in in running
        }
        for check_in in sorted(running, key=self._next.__getitem__):
            if self._next[check_in] <= now and self._may_send(check_in.slug, now):
                self._beat(check_in)
                self._next[check_in] = now + interval_of(check_in)
        return max(0.05, min(self._next.values()) - now) if self._next else None

    def _may_send(self, slug: str, now: float) -> bool:
        sent = self._sent.setdefault(slug, deque(maxlen=A_MINUTE))
        if len(sent) == A_MINUTE and now - sent[0] < AT_LEAST:
            return False
        sent.append(now)
        return True
