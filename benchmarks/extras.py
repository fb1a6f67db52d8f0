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
    "Sentry's own monitor": "sentrys",
    "monitored": "monitored",
    "one checkpoint": "checkpointed",
}


def extras(redis: RedisServer, *, quick: bool) -> str:
    """Tasks that compute for so long; medians, also of the ratios and differences of rounds.

    Check-ins are made by Sentry's SDK, whose transport drops them.
    """
    tasks, rounds = (300, 3) if quick else (2000, 5)
    rows: list[tuple[str, ...]] = []
    for setup in SETUPS:
        rows += _rows(redis, setup, 1, tasks, rounds)
        rows += _rows(redis, setup, 10, tasks // 5, rounds)
    return table(("pool and task", "tasks/s", "to GracefulTask", "CPU us/task more"), rows)


def _rows(
    redis: RedisServer,
    setup: tuple[str, int],
    milliseconds: int,
    tasks: int,
    rounds: int,
) -> list[tuple[str, ...]]:
    pool, concurrency = setup
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    with ExitStack() as stack:
        client = stack.enter_context(redis.client())
        client.flushdb()
        workers = {}
        for kind, task in KINDS.items():
            prepare(client, task, tasks, milliseconds)
            workers[kind] = stack.enter_context(
                Worker(
                    f"extras-{pool}-{task}",
                    pool=pool,
                    concurrency=concurrency,
                    env={"BENCH_SENTRY": "1"},
                )
            )
        for worker in workers.values():
            worker.wait("ready")
        for number in range(-1, rounds):  # the first one warms up
            for kind in [*KINDS][:: -1 if number % 2 else 1]:
                one = round_of(client, workers[kind], KINDS[kind], tasks)
                if number >= 0:
                    found[kind].append(one)
    first = found[next(iter(KINDS))]
    return [
        (
            f"{pool} -c {concurrency}, {milliseconds} ms, {kind}",
            f"{median(rate for rate, _ in rates):.0f}",
            f"{median(a[0] / b[0] for a, b in zip(rates, first, strict=True)):.3f}",
            f"{median(a[1] - b[1] for a, b in zip(rates, first, strict=True)) * 1e6:.0f}",
        )
        for kind, rates in found.items()
    ]
