"""Three workers that are started again whenever they are gone."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import psutil

from tests.chaos.verdict import Blow
from tests.support.workers import Worker

__all__ = ["Fleet"]

#: Seconds in which a worker that is asked to stop must be gone.
GRACE = 10.0


class Fleet:
    """The workers of one run.

    Args:
        pool: Their pool.
        env: Added to their environment.
        size: How many.
        concurrency: Of each.
    """

    def __init__(
        self, pool: str, env: dict[str, str], *, size: int = 3, concurrency: int = 4
    ) -> None:
        self.pool, self.env, self.concurrency = pool, env, concurrency
        self._started = 0
        self.workers: dict[str, Worker] = {}
        for _ in range(size):
            self._start()

    def _start(self) -> None:
        self._started += 1
        name = f"{self.pool}-{self._started}"
        self.workers[name] = Worker(
            "tests.chaos.app",
            pool=self.pool,
            concurrency=self.concurrency,
            env={**self.env, "CHAOS_WORKER": name, "GRACE": str(GRACE)},
            hostname=f"{name}@chaos",
            log_level="WARNING",
        )

    def ready(self) -> None:
        """Wait until all consume; their logs do not say so."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if all(self._is_up(worker) for worker in self.workers.values()):
                return
            time.sleep(0.05)
        raise AssertionError("the workers do not come up")

    def _is_up(self, worker: Worker) -> bool:
        return bool(worker.count("READY"))

    def kill_one(self, rng: random.Random, outputs: Path) -> Blow | None:
        """Kill a worker, or a child of one, at random; whom, and when."""
        name = rng.choice(list(self.workers))
        worker = self.workers[name]
        if not self._is_up(worker) and rng.random() < 0.8:
            return None
        if self.pool == "prefork" and rng.random() < 0.5:
            began = time.monotonic()
            try:
                pid = rng.choice(psutil.Process(worker.pid).children()).pid
                os.kill(pid, signal.SIGKILL)
            except (IndexError, psutil.NoSuchProcess, ProcessLookupError):  # none, or none any more
                return None
            return Blow("kill a child", began, time.monotonic(), name, pid)
        began = time.monotonic()
        worker.kill()
        blow = Blow("kill a worker", began, time.monotonic(), name)
        (outputs / name).write_text(worker.output)
        del self.workers[name]
        self._start()
        return blow

    def stop(self, outputs: Path) -> None:
        """Stop all of them, in good order as far as possible."""
        for worker in self.workers.values():
            worker.term()
        for name, worker in self.workers.items():
            try:
                worker.wait(2 * GRACE)
            except Exception:
                print(f"{name} had to be killed")
            worker.kill()
            (outputs / name).write_text(worker.output)
