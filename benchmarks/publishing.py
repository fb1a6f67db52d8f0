"""What sending a task costs: the bell of idle workers is rung with it."""

from __future__ import annotations

import time
from statistics import median
from typing import Any, NamedTuple

from celery import Celery

from benchmarks.tables import table
from celery_graceful import Graceful
from tests.servers import RedisServer

__all__ = ["publishing"]


class Round(NamedTuple):
    """Tasks a second, and microseconds of this process's processor time a task."""

    rate: float
    cpu: float


def publishing(redis: RedisServer, *, quick: bool) -> str:
    """Tasks sent a second by one process, with and without."""
    tasks, rounds = (500, 3) if quick else (3000, 7)
    found: dict[str, list[Round]] = {"plain Celery": [], "Graceful(app)": []}
    apps = {name: Celery(name, broker=redis.url(), set_as_current=False) for name in found}
    Graceful(apps["Graceful(app)"])
    with redis.client() as client:
        for app in apps.values():
            _send(app, client, tasks)  # connects
        for number in range(rounds):
            for name in sorted(found, reverse=bool(number % 2)):
                found[name].append(_send(apps[name], client, tasks))
    for app in apps.values():
        app.close()
    plain, ours = found.values()
    pairs = list(zip(plain, ours, strict=True))
    ratios = Round(
        median(b.rate / a.rate for a, b in pairs), median(b.cpu / a.cpu for a, b in pairs)
    )
    rows = [
        _row("plain Celery", plain, Round(1, 1)),
        _row("Graceful(app)", ours, ratios),
    ]
    return table(("", "tasks/s", "ratio", "CPU us/task", "ratio"), rows)


def _row(name: str, found: list[Round], ratios: Round) -> tuple[str, ...]:
    rate, cpu = median(one.rate for one in found), median(one.cpu for one in found)
    return (name, f"{rate:.0f}", f"{ratios.rate:.2f}", f"{cpu:.0f}", f"{ratios.cpu:.2f}")


def _send(app: Any, client: Any, tasks: int) -> Round:
    client.delete("publishing")
    began, used = time.monotonic(), time.process_time()
    for number in range(tasks):
        app.send_task("nobody.runs.it", (number,), queue="publishing")
    took, used = time.monotonic() - began, time.process_time() - used
    return Round(tasks / took, used / tasks * 1e6)
