"""Throughput in other circumstances: nowhere slower than plain Celery."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.commands import Commands
from benchmarks.tables import table
from benchmarks.throughput import play
from benchmarks.waiting import held, wait_until
from benchmarks.workers import TIMEOUT, Worker, send
from tests.servers import RedisServer

__all__ = ["variants"]

#: Messages of the deep queue that wait behind those that are counted.
DEEP = 1_000_000


@dataclass(frozen=True)
class Variant:
    """One set of circumstances.

    Attributes:
        name: For the table.
        pool: Of the workers.
        concurrency: Of the pool.
        env: For ``benchmarks.app``.
        queues: That the messages are spread over.
        payload: Bytes of the argument of each task.
        waiting: More messages that wait.
    """

    name: str
    pool: str = "threads"
    concurrency: int = 10
    env: Mapping[str, str] = field(default_factory=dict)
    queues: int = 1
    payload: int = 0
    waiting: int = 0


def variants(redis: RedisServer, *, quick: bool) -> str:
    """Empty tasks a second, and commands that Redis is asked for each; medians."""
    results = {"BENCH_RESULTS": redis.url()}
    started = {**results, "BENCH_STARTED": "1"}
    found = [
        Variant("late acks"),
        Variant("early acks", env={"BENCH_EARLY": "1"}),
        Variant("results on", env=results),
        Variant("results, track started", env=started),
        Variant("4 queues", queues=4),
        Variant("10 kB payloads", payload=10_000),
        Variant("gevent -c 50", "gevent", 50),
        Variant("prefork -c 2", "prefork", 2),
        Variant("prefork, early acks", "prefork", 2, env={"BENCH_EARLY": "1"}),
        Variant("prefork, results on", "prefork", 2, env=results),
        Variant("prefork, results, track started", "prefork", 2, env=started),
        Variant("a million messages wait", waiting=DEEP // 10 if quick else DEEP),
    ]
    head = ("threads -c 10, if not said", "plain /s", "ours /s", "ratio", "commands", "ours")
    tasks, rounds = (600, 1) if quick else (4000, 3)
    return table(head, [_row(redis, variant, tasks, rounds) for variant in found])


def _row(redis: RedisServer, variant: Variant, tasks: int, rounds: int) -> tuple[str, ...]:
    rates: tuple[list[float], list[float]] = ([], [])
    commands: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        client = stack.enter_context(redis.client())
        client.flushdb()
        for _ in range(tasks // variant.queues):
            send("stage", "empty", *(["x" * variant.payload] if variant.payload else []))
        workers = [
            stack.enter_context(
                Worker(
                    ",".join(f"variant-{number}-{queue}" for queue in range(variant.queues)),
                    pool=variant.pool,
                    concurrency=variant.concurrency,
                    plain=not number,
                    env=variant.env,
                )
            )
            for number in range(2)
        ]
        for worker in workers:
            worker.wait("ready")
            _round(client, worker, tasks, 0)  # the first one warms up
        for turn in range(rounds):
            for number in (0, 1) if turn % 2 else (1, 0):
                rate, asked = _round(client, workers[number], tasks, variant.waiting)
                rates[number].append(rate)
                commands[number].append(asked)
        return (
            variant.name,
            *(f"{median(some):.0f}" for some in rates),
            f"{median(b / a for a, b in zip(*rates, strict=True)):.2f}",
            *(f"{median(some):.1f}" for some in commands),
        )


def _round(client: Any, worker: Worker, tasks: int, waiting: int) -> tuple[float, float]:
    """Tasks a second, and commands for each."""
    queues = worker.queue_name.split(",")
    if waiting:
        _deepen(client, waiting)
    commands = Commands(client)
    took = play(client, "deep" if waiting else "stage", *queues, waiting=waiting)
    asked = commands.count()
    if waiting:
        client.delete(*queues)
        wait_until(lambda: not held(client), "what was taken has ended", client, seconds=TIMEOUT)
    return tasks / took, asked / tasks


def _deepen(client: Any, waiting: int) -> None:
    """Copies of the messages, until there are so many more."""
    if client.exists("deep"):
        return
    messages = client.lrange("stage", 0, -1)
    for _ in range(waiting // len(messages) + 1):
        client.rpush("deep", *messages)
    client.ltrim("deep", 0, waiting + len(messages) - 1)
