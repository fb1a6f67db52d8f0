"""What graceful tasks cost: empty tasks a second, against plain ones over the same transport."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.tables import table
from benchmarks.waiting import held, wait_until
from benchmarks.workers import TIMEOUT, Worker, send
from tests.servers import RedisServer

__all__ = ["CONTENDERS", "SETUPS", "cpu_of_round", "play", "prepare", "round_of", "throughput"]

SETUPS = (("prefork", 2), ("threads", 10))


@dataclass(frozen=True)
class Contender:
    """An app and a task.

    Attributes:
        name: For the table.
        task: Of ``benchmarks.app``.
        plain: The app is without celery_graceful.
    """

    name: str
    task: str
    plain: bool


CONTENDERS = (
    Contender("plain Celery", "empty", plain=True),
    Contender("Graceful(app), Task", "empty", plain=False),
    Contender("Graceful(app), GracefulTask", "empty_graceful", plain=False),
)


def throughput(redis: RedisServer, *, quick: bool) -> str:
    """Empty tasks a second: late acks, no results; medians, and ratios to plain Celery."""
    tasks, rounds = (600, 3) if quick else (4000, 5)
    rows = []
    for pool, concurrency in SETUPS:
        with ExitStack() as stack:
            client = stack.enter_context(redis.client())
            client.flushdb()
            workers = {}
            for contender in CONTENDERS:
                prepare(client, contender.task, tasks)
                workers[contender] = stack.enter_context(
                    Worker(
                        f"throughput-{pool}-{CONTENDERS.index(contender)}",
                        pool=pool,
                        concurrency=concurrency,
                        plain=contender.plain,
                    )
                )
            for contender, worker in workers.items():
                worker.wait("ready")
                round_of(client, worker, contender.task, tasks)  # the first one warms up
            rates: dict[Contender, list[tuple[float, float]]] = {c: [] for c in CONTENDERS}
            for number in range(rounds):
                # Forwards and backwards, so that nobody always comes last.
                for contender in CONTENDERS[:: -1 if number % 2 else 1]:
                    worker = workers[contender]
                    rates[contender].append(round_of(client, worker, contender.task, tasks))
        rows += _rows(f"{pool} -c {concurrency}", rates)
    rate = ("tasks/s", "spread", "to plain", "to Task")
    cpu = ("CPU us/task", "to plain", "to Task")
    head = ("pool, app and task", *rate, *cpu)
    return table(head, rows)


def prepare(client: Any, task: str, tasks: int, *args: Any) -> None:
    """Write the messages once; each round gets a copy of all of them at once."""
    if not client.exists(f"stage-{task}"):
        for _ in range(tasks):
            send(f"stage-{task}", task, *args)


def round_of(client: Any, worker: Worker, task: str, tasks: int) -> tuple[float, float]:
    """Tasks a second, and seconds of processor time for each."""
    used = worker.cpu_seconds()
    took = play(client, f"stage-{task}", worker.queue_name)
    return tasks / took, (worker.cpu_seconds() - used) / tasks


def cpu_of_round(client: Any, worker: Worker, task: str, tasks: int) -> float:
    """Seconds of processor time for each task."""
    return round_of(client, worker, task, tasks)[1]


def play(client: Any, stage: str, *queues: str, waiting: int = 0) -> float:
    """Seconds that workers take for a copy of the messages of ``stage`` in each queue.

    Args:
        client: A client of the server.
        stage: Key of the list of messages.
        queues: Where to put copies.
        waiting: Messages that are none of theirs: the time ends when so many are left.
    """
    _forget_results(client)
    with client.pipeline() as together:  # nobody begins before all are there
        for queue in queues:
            together.copy(stage, queue)
            together.lpush(f"graceful:bell:{queue}", "")  # as who sends them does
        together.execute()
    began = time.monotonic()

    def done() -> bool:
        left = sum(client.llen(queue) for queue in queues)
        return left <= waiting and bool(waiting or not held(client))

    what = f"the workers have come to the end of {', '.join(queues)}"
    wait_until(done, what, client, seconds=10 * TIMEOUT)
    return time.monotonic() - began


def _forget_results(client: Any) -> None:
    """The tasks run again, and what has succeeded once is not stored again."""
    keys = list(client.scan_iter("celery-task-meta-*", count=1000))
    if keys:
        client.delete(*keys)


def _rows(setup: str, rates: dict[Contender, list[tuple[float, float]]]) -> list[tuple[str, ...]]:
    plain, task, _ = rates.values()
    return [
        (
            f"{setup}, {contender.name}",
            f"{median(rate for rate, _ in found):.0f}",
            _spread([rate for rate, _ in found]),
            f"{_ratio(found, plain, 0):.3f}",
            f"{_ratio(found, task, 0):.3f}",
            f"{median(seconds for _, seconds in found) * 1e6:.0f}",
            f"{_ratio(found, plain, 1):.3f}",
            f"{_ratio(found, task, 1):.3f}",
        )
        for contender, found in rates.items()
    ]


def _spread(rates: list[float]) -> str:
    """How far rounds are from each other, the slowest and the fastest, in parts of the median."""
    return f"{(max(rates) - min(rates)) / median(rates):.0%}"


def _ratio(these: list[tuple[float, float]], those: list[tuple[float, float]], which: int) -> float:
    """Median of the ratios of each round: so a load that comes and goes matters less."""
    return median(a[which] / b[which] for a, b in zip(these, those, strict=True))
