"""The workers of the benchmarks: real processes, that tell what they do."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import redis

from benchmarks.waiting import Stuck, holdings
from tests.support.processes import ProcessGroup

__all__ = ["POOLS", "Said", "Worker", "send"]

POOLS = ("prefork", "threads", "gevent", "eventlet", "solo")

#: Seconds; many times what anything waited for here takes.
TIMEOUT = 60.0

_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Said:
    """What a task said, when (on the monotonic clock of the machine), and more."""

    what: str
    at: float
    value: str


class Worker(ProcessGroup):
    """A worker of ``benchmarks.app`` with a queue of its own; use it as a context manager.

    Args:
        queue_name: What it consumes.
        pool: Its pool.
        concurrency: Of the pool.
        name: Of its node; without: that of the queue.
        plain: Leave celery_graceful out.
        prefetch: Messages fetched ahead, for each process or thread.
        env: More of what ``benchmarks.app`` reads.
        gossip: Listen to the others, as workers do by default.
        tree: Where the app and the package are, if not here.
    """

    def __init__(
        self,
        queue_name: str,
        *,
        pool: str,
        concurrency: int,
        name: str = "",
        plain: bool = False,
        prefetch: int = 4,
        env: Mapping[str, str] | None = None,
        gossip: bool = False,
        tree: Path = _ROOT,
    ) -> None:
        self.queue_name = queue_name
        self._said: queue.SimpleQueue[Said | None] = queue.SimpleQueue()
        self._lines: list[str] = []
        argv = [sys.executable, "-m", "celery", "-A", "benchmarks.app", "worker", "-l", "WARNING"]
        name = f"{name or queue_name.partition(',')[0]}@bench"
        argv += ["-P", pool, "-c", str(concurrency), "-Q", queue_name, "-n", name]
        if not gossip:
            argv += ["--without-mingle", "--without-gossip"]
        super().__init__(
            argv,
            cwd=tree,
            env={
                **os.environ,
                "BENCH_QUEUE": queue_name,
                "BENCH_PLAIN": "1" if plain else "",
                "BENCH_PREFETCH": str(prefetch),
                **(env or {}),
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("@bench "):
                _, what, at, value = line.rstrip("\n").split(" ", 3)
                self._said.put(Said(what, float(at), value))
            else:
                self._lines.append(line)
        self._said.put(None)

    def wait(self, what: str, count: int = 1, timeout: float = TIMEOUT) -> list[Said]:
        """Wait until the tasks have said ``what`` so many times.

        Raises:
            Stuck: The worker ended, or there was nothing for so long, before they had.
        """
        heard: list[Said] = []
        while len(heard) < count:
            try:
                said = self._said.get(timeout=timeout)
            except queue.Empty:
                said = None
            if said is None:
                output = "".join(self._lines[-30:])
                with redis.Redis.from_url(
                    os.environ["BENCH_REDIS"], decode_responses=True
                ) as client:
                    held = holdings(client)
                raise Stuck(
                    f"{self.queue_name}: {len(heard)} of {count} said {what!r}, and nothing did "
                    f"for {timeout:g} s\n{output}Redis holds:\n{held}"
                )
            if said.what == what:
                heard.append(said)
        return heard

    def next(self, timeout: float) -> Said | None:
        """What a task says next; ``None`` if that is nothing for so many seconds."""
        try:
            return self._said.get(timeout=timeout)
        except queue.Empty:
            return None

    def term(self) -> None:
        """Tell it to stop."""
        self.process.send_signal(signal.SIGTERM)

    def cpu_seconds(self) -> float:
        """What it and its children have used of the processor so far."""
        main = psutil.Process(self.process.pid)
        used = 0.0
        for process in (main, *main.children(recursive=True)):
            times = process.cpu_times()
            used += times.user + times.system
        return used

    def kill(self) -> None:
        super().kill()
        self._reader.join(TIMEOUT)


def send(queue_name: str, task: str, *args: Any, **options: Any) -> None:
    """Send a task of ``benchmarks.app`` to a queue."""
    from benchmarks.app import app  # reads BENCH_REDIS

    app.send_task(f"benchmarks.app.{task}", args, queue=queue_name, **options)
