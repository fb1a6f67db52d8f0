"""A pool that is always full: how long it waits for the next task when one has ended."""

from __future__ import annotations

import time

from benchmarks.tables import table
from benchmarks.workers import Worker, send
from tests.servers import RedisServer

__all__ = ["full_pool"]

#: Seconds that each task takes, and tasks at once; no more are fetched ahead.
TASK, CONCURRENCY = 0.1, 10


def full_pool(redis: RedisServer, *, quick: bool) -> str:
    """Seconds for tasks of 0.1 s, 10 at once and none fetched ahead; more tasks wait."""
    tasks = 50 if quick else 200
    rows = []
    for pool in ("threads", "gevent", "eventlet"):
        took = []
        for plain in (True, False):
            queue = f"full-{pool}-{plain}"
            for _ in range(tasks):
                send(queue, "busy", TASK)
            with Worker(
                queue, pool=pool, concurrency=CONCURRENCY, plain=plain, prefetch=1
            ) as worker:
                worker.wait("running")
                began = time.monotonic()
                worker.wait("running", tasks - 1)
                took.append(time.monotonic() - began)
        ideal = (tasks / CONCURRENCY - 1) * TASK
        rows.append((pool, *(f"{seconds:.2f}" for seconds in (*took, ideal))))
    return table(("pool", "plain s", "ours s", "at best s"), rows)
