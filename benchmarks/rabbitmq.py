"""Throughput on RabbitMQ, whose messages are fetched and acknowledged by Celery itself."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from statistics import median
from typing import NamedTuple

from celery import Celery

from benchmarks.brokers import BROKERS, Broker
from benchmarks.tables import table
from benchmarks.throughput import CONTENDERS, SETUPS, Contender
from benchmarks.workers import Worker
from tests.servers import RabbitServer, RedisServer

__all__ = ["rabbitmq"]


#: Of its plain worker ten tasks take a second: there are fewer.
GREEN = "gevent", 50


class Round(NamedTuple):
    """Tasks a second, and microseconds of processor time a task."""

    rate: float
    cpu: float


def rabbitmq(redis: RedisServer, *, quick: bool) -> str:
    """Empty tasks a second over RabbitMQ: late acks, no results; medians of ratios to plain."""
    tasks, rounds = (300, 1) if quick else (2000, 5)
    setups = [(pool, tasks) for pool in SETUPS] + [(GREEN, tasks // 10)]
    rows = []
    with RabbitServer() as rabbit:
        for broker in (one for one in BROKERS if one.queue_type):
            for (pool, concurrency), tasks in setups:
                found = _measure(broker, redis, rabbit, (pool, concurrency), tasks, rounds)
                rows += _rows(f"{broker.queue_type}, {pool} -c {concurrency}", found)
    head = ("queue, pool, app and task", "tasks/s", "to plain", "CPU us/task", "to plain")
    return table(head, rows)


def _measure(
    broker: Broker,
    redis: RedisServer,
    rabbit: RabbitServer,
    pool: tuple[str, int],
    tasks: int,
    rounds: int,
) -> dict[Contender, list[Round]]:
    found: dict[Contender, list[Round]] = {contender: [] for contender in CONTENDERS}
    with ExitStack() as stack:
        workers = {}
        for contender in CONTENDERS:
            queue = f"{broker.queue_type}-{pool[0]}-{CONTENDERS.index(contender)}"
            app = stack.enter_context(Celery(queue, broker=rabbit.url(), set_as_current=False))
            broker.configure(app.conf, queue)
            worker = stack.enter_context(
                Worker(
                    queue,
                    pool=pool[0],
                    concurrency=pool[1],
                    plain=contender.plain,
                    env=broker.env(redis, rabbit),
                )
            )
            worker.wait("ready")
            workers[contender] = app, worker
        for number in range(-1, rounds):  # the first one warms up
            for contender in CONTENDERS[:: -1 if number % 2 else 1]:
                one = _round(*workers[contender], contender.task, tasks)
                if number >= 0:
                    found[contender].append(one)
    return found


def _round(app: Celery, worker: Worker, task: str, tasks: int) -> Round:
    os.killpg(worker.pid, signal.SIGSTOP)  # else it would run them while they are sent
    with app.producer_or_acquire() as producer:
        for name in (*[task] * (tasks - 1), "done"):
            app.send_task(f"benchmarks.app.{name}", queue=worker.queue_name, producer=producer)
    used, began = worker.cpu_seconds(), time.monotonic()
    os.killpg(worker.pid, signal.SIGCONT)
    worker.wait("done")
    took = time.monotonic() - began
    return Round(tasks / took, (worker.cpu_seconds() - used) / tasks * 1e6)


def _rows(name: str, found: dict[Contender, list[Round]]) -> list[tuple[str, ...]]:
    plain = next(each for contender, each in found.items() if contender.plain)

    def ratio(these: list[Round], which: int) -> float:
        return median(a[which] / b[which] for a, b in zip(these, plain, strict=True))

    return [
        (
            f"{name}, {contender.name}",
            f"{median(one.rate for one in each):.0f}",
            f"{ratio(each, 0):.3f}",
            f"{median(one.cpu for one in each):.0f}",
            f"{ratio(each, 1):.3f}",
        )
        for contender, each in found.items()
    ]
