"""What a run costs that uses more of a graceful task than its base: a monitor, a checkpoint."""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median

from benchmarks.tables import table
from benchmarks.throughput import SETUPS, prepare, round_of
from benchmarks.workers import Worker
from tests.servers import RedisServer

__all__ = ["extras"]

#: Names for the table, and tasks of ``benchmarks.app``; the first one is what the others are to.
KINDS = {
    "GracefulTask": "millisecond",
    "monitored": "monitored",
    "one checkpoint": "checkpointed",
}


def extras(redis: RedisServer, *, quick: bool) -> str:
    """Tasks that compute for a millisecond; medians, also of the ratios and differences of rounds.

    Check-ins are made by Sentry's SDK, whose transport drops them.
    """
    tasks, rounds = (300, 3) if quick else (2000, 5)
    rows = []
    for pool, concurrency in SETUPS:
        with ExitStack() as stack:
            client = stack.enter_context(redis.client())
            client.flushdb()
            workers = {}
            for kind, task in KINDS.items():
                prepare(client, task, tasks)
                workers[kind] = stack.enter_context(
                    Worker(
                        f"extras-{pool}-{task}",
                        pool=pool,
                        concurrency=concurrency,
                        env={"BENCH_SENTRY": "1"},
                    )
                )
            for kind, worker in workers.items():
                round_of(client, worker, KINDS[kind], tasks)  # the first one warms up
            found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
            for number in range(rounds):
                for kind in [*KINDS][:: -1 if number % 2 else 1]:
                    found[kind].append(round_of(client, workers[kind], KINDS[kind], tasks))
        first = found[next(iter(KINDS))]
        for kind, rates in found.items():
            both = list(zip(rates, first, strict=True))
            rows.append(
                (
                    f"{pool} -c {concurrency}, {kind}",
                    f"{median(rate for rate, _ in rates):.0f}",
                    f"{median(a[0] / b[0] for a, b in both):.3f}",
                    f"{median(a[1] - b[1] for a, b in both) * 1e6:.0f}",
                )
            )
    return table(("pool and task", "tasks/s", "to GracefulTask", "CPU us/task more"), rows)
