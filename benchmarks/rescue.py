"""From kill -9 of a worker to its tasks running on another one."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

from benchmarks.tables import percentile, table
from benchmarks.workers import Worker, send
from tests.servers import RedisServer

__all__ = ["rescue"]

#: Workers that are killed in one round, a little after one another; one is left.
VICTIMS = 5

#: Settings by name: the environment of ``benchmarks.app``.
SETTINGS = {
    "the defaults": {},
    "lease_ttl=2": {"BENCH_LEASE": "2"},
}

#: Seconds between two kills, so that they hit leases of all ages.
BETWEEN = 0.37


def rescue(redis: RedisServer, *, quick: bool) -> str:
    """From kill -9 of a worker to its task running on another one. Plain Celery: an hour."""
    rounds = 1 if quick else 4
    rows = []
    for name, env in SETTINGS.items():
        os.environ.pop("BENCH_LEASE", None)
        os.environ.update(env)
        times = [seconds for number in range(rounds) for seconds in _round(number)]
        numbers = (min(times), percentile(times, 50), max(times))
        rows.append((name, str(len(times)), *(f"{number:.2f}" for number in numbers)))
    os.environ.pop("BENCH_LEASE", None)
    return table(("settings", "kills", "min s", "median s", "max s"), rows)


def _round(number: int) -> list[float]:
    queues = [f"rescue-{time.monotonic_ns()}-{number}-{victim}" for victim in range(VICTIMS)]
    with ExitStack() as stack:
        victims = []
        for queue in queues:
            victim = stack.enter_context(Worker(queue, pool="threads", concurrency=1))
            send(queue, "busy", 30.0)
            victims.append(victim)
        for victim in victims:
            victim.wait("running")
        own = f"{queues[0]}-own"
        other = stack.enter_context(
            Worker(",".join([own, *queues]), pool="threads", concurrency=VICTIMS + 1)
        )
        send(own, "busy", 0.0)
        other.wait("running")  # it fetches
        killed = []
        for victim in victims:
            victim.kill()
            killed.append(time.monotonic())
            time.sleep(BETWEEN)
        # They come back in the order of their deaths, as leases run out in that order.
        began = sorted(said.at for said in other.wait("running", VICTIMS))
    return [at - dead for at, dead in zip(began, killed, strict=True)]
