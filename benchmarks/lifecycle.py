"""What a worker costs beside its tasks: its start, its stop, and its memory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import psutil

from benchmarks.tables import table
from benchmarks.workers import TIMEOUT, Worker
from tests.servers import RedisServer

__all__ = ["lifecycle"]

#: Seconds for which a worker that is ready has nothing to do, before it is told to stop.
IDLE = 1.0

#: Of each pool.
CONCURRENCY = 2


@dataclass(frozen=True)
class Life:
    """Of one worker that had nothing to do: seconds, and MiB that are resident.

    Attributes:
        start: From its start until it is ready.
        stop: From SIGTERM until it is gone.
        main: Its main process.
        child: One child of its pool; 0 where it has none.
    """

    start: float
    stop: float
    main: float
    child: float


def lifecycle(redis: RedisServer, *, quick: bool) -> str:
    """Of idle workers: start until "ready", SIGTERM until gone, resident memory; medians."""
    rounds = 3 if quick else 9
    head = ("", "plain", "ours", "ours less plain")
    rows = []
    for pool in ("prefork", "threads", "gevent", "eventlet", "solo"):
        pairs = [
            [_life(redis, pool, plain=plain) for plain in (True, False)] for _ in range(rounds)
        ]
        plain, ours = ([pair[i] for pair in pairs] for i in (0, 1))
        for what, unit, digits in (
            ("start", "s", 2),
            ("stop", "s", 2),
            ("main", "MiB", 1),
            ("child", "MiB", 1),
        ):
            a, b = (median(getattr(life, what) for life in some) for some in (plain, ours))
            if a:
                numbers = (f"{a:.{digits}f}", f"{b:.{digits}f}", f"{b - a:+.{digits}f}")
                rows.append((f"{pool}, {what}, {unit}", *numbers))
    return table(head, rows)


def _life(redis: RedisServer, pool: str, *, plain: bool) -> Life:
    with redis.client() as client:
        client.flushdb()
    began = time.monotonic()
    with Worker("idle", pool=pool, concurrency=CONCURRENCY, plain=plain) as worker:
        ready = worker.wait("ready")[0].at
        time.sleep(IDLE)
        main = psutil.Process(worker.process.pid)
        children = main.children()
        memory = [process.memory_info().rss / 2**20 for process in (main, *children)]
        stopped_at = time.monotonic()
        worker.term()
        worker.process.wait(TIMEOUT)
        gone = time.monotonic()
    child = median(memory[1:]) if children else 0.0
    return Life(ready - began, gone - stopped_at, memory[0], child)
