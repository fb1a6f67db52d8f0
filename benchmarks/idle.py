"""What idle workers ask of Redis."""

from __future__ import annotations

import time
from contextlib import ExitStack

from benchmarks.commands import Commands
from benchmarks.tables import table
from benchmarks.workers import Worker
from tests.servers import RedisServer

__all__ = ["idle"]

#: Seconds until they have met, and for which they are watched then: some of what kombu asks comes
#: once in a minute.
SETTLE, WATCHED = 10.0, 60.0

#: Workers that start side by side.
AT_ONCE = 5


def idle(redis: RedisServer, *, quick: bool) -> str:
    """Commands a second that idle workers of one queue ask of Redis; those inside scripts too."""
    rows = []
    for pool, size in (("solo", 5), ("prefork", 2)) if quick else (("solo", 50), ("prefork", 10)):
        plain, ours = (_rate(redis, pool, size, plain=plain) for plain in (True, False))
        each = f"{plain / size:.2f}", f"{ours / size:.2f}"
        rows.append((f"{size} {pool}", f"{plain:.0f}", f"{ours:.0f}", *each, f"{ours / plain:.2f}"))
    return table(("workers", "plain /s", "ours /s", "each, plain", "each, ours", "ratio"), rows)


def _rate(redis: RedisServer, pool: str, size: int, *, plain: bool) -> float:
    with ExitStack() as stack:
        client = stack.enter_context(redis.client())
        client.flushdb()
        for start in range(0, size, AT_ONCE):
            started = [
                stack.enter_context(
                    Worker(
                        "idle",
                        name=f"idle-{number}",
                        pool=pool,
                        concurrency=1,
                        plain=plain,
                        gossip=True,
                    )
                )
                for number in range(start, min(start + AT_ONCE, size))
            ]
            for worker in started:
                worker.wait("ready")
        time.sleep(SETTLE)
        commands, began = Commands(client), time.monotonic()
        time.sleep(WATCHED)
        return commands.count() / (time.monotonic() - began)
