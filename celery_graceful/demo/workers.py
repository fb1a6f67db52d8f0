"""The demo's workers: real ``celery worker`` processes, read line by line."""

from __future__ import annotations

import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping

from celery_graceful.demo.journal import Fact, parse
from celery_graceful.system.guarded_process import Process

__all__ = ["Ended", "LogLine", "News", "Ready", "Worker"]

_LOG_LINE = re.compile(r"(?P<level>[A-Z]+) celery_graceful\S* (?P<text>.*)")


class LogLine(str):
    """A line that celery_graceful wrote to the worker's log."""


class Ready(str):
    """The worker consumes."""


class Ended(str):
    """The worker's process and its children have closed their output."""


#: The worker that has news, and what they are.
News = tuple["Worker", "Fact | LogLine | Ready | Ended"]


class Worker:
    """A worker of the demo's app.

    Args:
        name: What it is called in the timeline.
        pool: Its pool.
        concurrency: Of the pool.
        env: Added to its environment.
        news: Gets all that it tells.
    """

    def __init__(
        self,
        name: str,
        *,
        pool: str,
        concurrency: int,
        env: Mapping[str, str],
        news: queue.SimpleQueue[News],
    ) -> None:
        self.name = name
        self.news = news
        self.running = True
        #: On the monotonic clock; ``None`` until it is told to stop.
        self.told_to_stop_at: float | None = None
        self.killed = False
        self.tail: deque[str] = deque(maxlen=15)
        argv = [sys.executable, "-m", "celery", "-A", "celery_graceful.demo.app", "worker"]
        argv += ["-P", pool, "-c", str(concurrency), "-l", "INFO", "-n", f"{name}@demo"]
        argv += ["--without-mingle", "--without-gossip"]
        env = {**env, "DEMO_WORKER": name, "PYTHONUNBUFFERED": "1"}
        self._process = Process(argv, env, subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def has_ended(self) -> None:
        """Its log has come to its end."""
        self.running = False

    def _read(self) -> None:
        for line in map(str.rstrip, self._process.output):
            fact = parse(line)
            if fact is not None:
                self.news.put((self, fact))
                continue
            self.tail.append(line)
            log_line = _LOG_LINE.match(line)
            if log_line is not None:
                self.news.put((self, LogLine(log_line["text"])))
            elif line.endswith(" ready."):
                self.news.put((self, Ready()))
        self.news.put((self, Ended()))

    def term(self) -> None:
        """Tell it to stop."""
        self.told_to_stop_at = time.monotonic()
        self._process.signal(signal.SIGTERM)

    def gone(self) -> int | None:
        """The exit status of its main process, ``None`` while it runs."""
        return self._process.wait(0)

    def kill(self) -> None:
        """End it with its children at once, as a platform does."""
        self.killed = self.gone() is None
        self._process.kill()
        self._reader.join(5)
