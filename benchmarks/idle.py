"""What idle workers ask of Redis."""

from __future__ import annotations

import time
from contextlib import ExitStack

from benchmarks.commands import Commands
from benchmarks.tables import table
from benchmarks.workers import Worker, send
from tests.servers import RedisServer

__all__ = ["idle"]

#: Seconds for which they are watched.
WATCHED = 20.0


def idle(redis: RedisServer, *, quick: bool) -> str:
    """Commands a second that a fleet of idle workers asks of Redis, those inside scripts too."""
    size = 5 if quick else 50
    rows = []
    for name, plain in (("plain Celery", True), ("Graceful(app)", False)):
        with ExitStack() as stack:
            client = stack.enter_context(redis.client())
            client.flushdb()
            workers = [
                stack.enter_context(
                    Worker(f"idle-{number}", pool="solo", concurrency=1, plain=plain)
                )
                for number in range(size)
            ]
            for number, worker in enumerate(workers):
                send(f"idle-{number}", "busy", 0.0)
                worker.wait("running")
            commands = Commands(client)
            began = time.monotonic()
            time.sleep(WATCHED)
            rate = commands.count() / (time.monotonic() - began)
            rows.append((f"{size} workers, {name}", f"{rate:.0f}", f"{rate / size:.1f}"))
    return table(("", "commands/s", "for each"), rows)
