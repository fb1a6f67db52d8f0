"""How soon the messages that were fetched and not started are back in the queue."""

from __future__ import annotations

import time

from benchmarks.tables import table
from benchmarks.workers import POOLS, Worker, send
from tests.servers import RedisServer

__all__ = ["release"]

#: What runs, knows nothing of the stop, and how many seconds it takes.
RUNNING, SECONDS = 2, 3.0

#: Messages for each process or thread that the worker fetches ahead; half have an ETA.
PREFETCH = 10


def release(redis: RedisServer, *, quick: bool) -> str:
    """From SIGTERM until all messages that were fetched and not started wait in the queue."""
    stops = 2 if quick else 7
    rows = []
    for pool in POOLS:
        ours = sorted(_measure(redis, pool, i, plain=False) for i in range(stops))
        plain = _measure(redis, pool, 0, plain=True)
        median, worst = ours[len(ours) // 2], ours[-1]
        rows.append((pool, f"{median * 1000:.1f}", f"{worst * 1000:.1f}", f"{plain * 1000:.0f}"))
    head = ("pool", f"median of {stops}, ms", "worst, ms", "plain Celery, ms")
    return table(head, rows)


#: Seconds that the worker gets to fetch, and that the messages have to come back.
SETTLE, TIMEOUT = 0.5, 30.0


def _measure(redis: RedisServer, pool: str, number: int, *, plain: bool) -> float:
    running = 1 if pool == "solo" else RUNNING
    queue = f"release-{pool}-{number}-{plain}"
    with redis.client() as client:
        client.flushdb()
        for _ in range(running):
            send(queue, "busy", SECONDS)
        # Both kinds of what is not started: it waits for room, or for its time.
        waiting = running * PREFETCH - running
        for i in range(waiting):
            send(queue, "empty", countdown=60 if i % 2 else None)
        with Worker(
            queue, pool=pool, concurrency=running, plain=plain, prefetch=PREFETCH
        ) as worker:
            worker.wait("running", running)
            time.sleep(SETTLE)
            fetched = client.hlen("unacked") - running
            stopped_at = time.monotonic()
            worker.term()
            while client.llen(queue) < waiting:
                if time.monotonic() > stopped_at + TIMEOUT:
                    raise RuntimeError(f"{pool}: messages did not come back")
                time.sleep(0.001)
            return time.monotonic() - stopped_at if fetched else 0.0
