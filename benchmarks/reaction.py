"""How soon an idle worker begins what it is sent, and how soon the sender has the result."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from celery import Celery

from benchmarks.brokers import BROKERS, Broker
from benchmarks.tables import percentile, table
from benchmarks.workers import TIMEOUT, Worker
from celery_graceful import Graceful
from tests.servers import RabbitServer, RedisServer

__all__ = ["reaction"]

POOLS = (("prefork", 2), ("threads", 10), ("gevent", 50))

#: Seconds between two tasks, at most: the worker has gone to sleep, at any place of what it does.
PAUSE = 0.05


class Reaction(NamedTuple):
    """Seconds from ``delay()`` to the task's first line, and to its result."""

    began: float
    ended: float


def reaction(redis: RedisServer, *, quick: bool) -> str:
    """From ``delay()`` to the task's first line, and to ``get()`` of its result; idle workers."""
    tasks = 20 if quick else 400
    rows = []
    with RabbitServer() as rabbit:
        for broker in BROKERS:
            for pool, concurrency in POOLS[: None if broker.name == "Redis" else 1]:
                found = _measure(broker, redis, rabbit, pool, concurrency, tasks)
                rows += [
                    _row(f"{broker.name}, {pool}, {name}", each) for name, each in found.items()
                ]
    head = ("broker, pool, app", "begins, p50 ms", "p99 ms", "get(), p50 ms", "p99 ms")
    return table(head, rows)


def _row(name: str, found: list[Reaction]) -> tuple[str, ...]:
    times = [
        percentile([one[which] for one in found], percent)
        for which in (0, 1)
        for percent in (50, 99)
    ]
    return (name, *(f"{seconds * 1000:.2f}" for seconds in times))


def _measure(
    broker: Broker,
    redis: RedisServer,
    rabbit: RabbitServer,
    pool: str,
    concurrency: int,
    tasks: int,
) -> dict[str, list[Reaction]]:
    found: dict[str, list[Reaction]] = {"plain": [], "ours": []}
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(_side(broker, redis, rabbit, pool, concurrency, name))
            for name in found
        }
        for number in range(-5, tasks):  # the first ones warm up
            for name in sorted(sides, reverse=bool(number % 2)):
                one = _once(*sides[name])
                if number >= 0:
                    found[name].append(one)
    return found


@contextmanager
def _side(
    broker: Broker,
    redis: RedisServer,
    rabbit: RabbitServer,
    pool: str,
    concurrency: int,
    name: str,
) -> Iterator[tuple[Celery, Worker]]:
    """A worker, and an app that sends to it: both with the package, or both without."""
    queue = f"{broker.queue_type or 'redis'}-{pool}-{name}"
    url = broker.url(redis, rabbit)
    app = Celery(queue, broker=url, backend=redis.url(), set_as_current=False)
    broker.configure(app.conf, queue)
    if name == "ours":
        app.conf.graceful_store = redis.url()
        Graceful(app)
    env = broker.env(redis, rabbit)
    with (
        app,
        Worker(
            queue,
            pool=pool,
            concurrency=concurrency,
            plain=name == "plain",
            env={**env, "BENCH_RESULTS": redis.url()},
        ) as worker,
    ):
        worker.wait("ready")
        yield app, worker


def _once(app: Any, worker: Worker) -> Reaction:
    time.sleep(random.uniform(0.2, 1) * PAUSE)
    began = time.monotonic()
    result = app.send_task("benchmarks.app.begins", queue=worker.queue_name)
    result.get(timeout=TIMEOUT)
    ended = time.monotonic()
    (said,) = worker.wait("began")
    return Reaction(said.at - began, ended - began)
