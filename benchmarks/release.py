"""How soon the messages that were fetched and not started are back in the queue."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from benchmarks.tables import table
from benchmarks.waiting import held
from benchmarks.workers import POOLS, Worker, send
from tests.servers import RedisServer

__all__ = ["release"]

#: Tasks that run, know nothing of the stop, and take so many seconds.
RUNNING, SECONDS = 2, 3.0

#: Messages for each process or thread that the worker fetches ahead, and those with an ETA.
PREFETCH, WITH_ETA = 10, 5

#: Seconds that the worker gets to fetch, and that the messages get to come back.
SETTLE, TIMEOUT = 0.5, 15.0


@dataclass(frozen=True)
class Release:
    """One stop: how many messages were fetched and not started, and when they were back."""

    messages: int
    seconds: float


def release(redis: RedisServer, *, quick: bool) -> str:
    """From SIGTERM until the worker holds no message any more of those that wait to be started."""
    stops = 2 if quick else 7
    rows = []
    for pool in POOLS:
        ours = [_measure(redis, f"{pool}-{i}", pool, plain=False) for i in range(stops)]
        plain = _measure(redis, f"{pool}-plain", pool, plain=True)
        times = sorted(stop.seconds for stop in ours)
        messages = f"{min(stop.messages for stop in ours)}"
        rows.append((pool, messages, _ms(times[stops // 2]), _ms(times[-1]), _ms(plain.seconds)))
    return table(("pool", "messages", f"median of {stops}, ms", "worst, ms", "plain, ms"), rows)


def _measure(redis: RedisServer, queue: str, pool: str, *, plain: bool) -> Release:
    running = 1 if pool == "solo" else RUNNING
    with redis.client() as client:
        client.flushdb()
        # The running ones in between: solo fetches nothing while one of them runs.
        for _ in range(WITH_ETA):
            send(queue, "empty", countdown=60)
        for _ in range(running):
            send(queue, "busy", SECONDS)
        for _ in range(running * PREFETCH):
            send(queue, "empty")
        with Worker(
            queue, pool=pool, concurrency=running, plain=plain, prefetch=PREFETCH
        ) as worker:
            worker.wait("running", running)
            time.sleep(SETTLE)
            fetched = held(client) - running
            stopped_at = time.monotonic()
            worker.term()
            # Not the queue's length: plain Celery starts some of them when there is room.
            while held(client) > running:
                if time.monotonic() > stopped_at + TIMEOUT:
                    return Release(fetched, math.inf)
                time.sleep(0.001)
            return Release(fetched, time.monotonic() - stopped_at)


def _ms(seconds: float) -> str:
    return f"not in {TIMEOUT:.0f} s" if math.isinf(seconds) else f"{seconds * 1000:.1f}"
