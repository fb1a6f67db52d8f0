"""How soon a task sees that it must stop, and what it costs to look."""

from __future__ import annotations

import time
from contextlib import ExitStack

from benchmarks.tables import percentile, table
from benchmarks.workers import POOLS, Worker, send
from tests.servers import RedisServer

__all__ = ["latency", "reading"]

#: Tasks of ``benchmarks.app``, and how they look.
WAYS = {
    "polls": "self.interrupted each ms",
    "sleeps": "self.sleep",
    "blocks": "interruptible()",
}

#: Workers that are started together. They are stopped one after another.
BATCH = 6

#: Seconds that a worker gets to become quiet, and that plain Celery gets to tell a task.
PAUSE, PLAIN_TIMEOUT = 0.05, 0.5


def latency(redis: RedisServer, *, quick: bool) -> str:
    """From SIGTERM to the first line of the task that sees it."""
    stops = 8 if quick else 101
    rows = []
    for pool in POOLS:
        seen = _measure(pool, stops)
        by_hand = _measure_plain(pool, 3 if pool == "prefork" else stops // 2)
        rows += [_row(f"{pool}, {WAYS[way]}", times) for way, times in seen.items()]
        rows.append(_row(f"{pool}, plain Celery and a flag", by_hand))
    head = ("pool, and how the task looks", "stops", "p50 ms", "p99 ms", "max ms")
    return table(head, rows)


def _row(name: str, times: list[float]) -> tuple[str, ...]:
    if not times:
        return (name, "-", "never", "never", "never")
    numbers = (percentile(times, 50), percentile(times, 99), max(times))
    return (name, str(len(times)), *(f"{number * 1000:.2f}" for number in numbers))


def _measure(pool: str, stops: int) -> dict[str, list[float]]:
    """Seconds of each stop, by the way of looking. One stop serves all ways if it can."""
    seen: dict[str, list[float]] = {way: [] for way in WAYS}
    together = [[way] for way in WAYS] if pool == "solo" else [list(WAYS)]
    for ways in together:
        for first in range(0, stops, BATCH):
            with ExitStack() as stack:
                batch = [
                    stack.enter_context(_start(f"{pool}-{ways[0]}-{i}", pool, ways))
                    for i in range(first, min(first + BATCH, stops))
                ]
                for worker in batch:
                    worker.wait("running", len(ways))
                time.sleep(PAUSE)
                for worker in batch:
                    stopped_at = time.monotonic()
                    worker.term()
                    for said in worker.wait("seen", len(ways)):
                        seen[said.value].append(said.at - stopped_at)
                    worker.kill()
                    time.sleep(PAUSE)
    return seen


def _measure_plain(pool: str, stops: int) -> list[float]:
    """The same for a task of plain Celery; empty if it never sees it."""
    times = []
    for first in range(0, stops, BATCH):
        with ExitStack() as stack:
            batch = [
                stack.enter_context(
                    _start(f"plain-{pool}-{i}", pool, ["polls_by_hand"], plain=True)
                )
                for i in range(first, min(first + BATCH, stops))
            ]
            for worker in batch:
                worker.wait("running")
            time.sleep(PAUSE)
            for worker in batch:
                stopped_at = time.monotonic()
                worker.term()
                seen = worker.next(PLAIN_TIMEOUT)
                if seen is not None:
                    times.append(seen.at - stopped_at)
                worker.kill()
                time.sleep(PAUSE)
    return times


def _start(name: str, pool: str, ways: list[str], *, plain: bool = False) -> Worker:
    queue = f"latency-{name}"
    for way in ways:
        args = (pool != "threads",) if way == "blocks" else ()
        send(queue, way, *args)
    return Worker(queue, pool=pool, concurrency=len(ways), plain=plain)


def reading(redis: RedisServer, *, quick: bool) -> str:
    """What one look at ``self.interrupted`` costs."""
    from benchmarks.app import read_cost, reads

    rounds = 500 if quick else 5000
    rows = [("outside of a worker", f"{read_cost(reads._get_current_object(), rounds):.0f}")]
    for pool in POOLS:
        queue = f"reading-{pool}"
        send(queue, "reads", rounds)
        with Worker(queue, pool=pool, concurrency=1) as worker:
            cost = float(worker.wait("read")[0].value)
        rows.append((f"in a task, {pool}", f"{cost:.0f}"))
    return table(("one look at self.interrupted", "ns"), rows)
