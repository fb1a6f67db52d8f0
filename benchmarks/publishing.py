"""What sending a task costs: the bell of idle workers is rung with it."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from celery import Celery

from benchmarks.tables import table
from celery_graceful import Graceful
from tests.servers import RedisServer

__all__ = ["publishing"]


def publishing(redis: RedisServer, *, quick: bool) -> str:
    """Tasks sent a second by one process, with and without."""
    tasks, rounds = (500, 3) if quick else (3000, 7)
    rates: dict[str, list[float]] = {"plain Celery": [], "Graceful(app)": []}
    apps = {name: Celery(name, broker=redis.url(), set_as_current=False) for name in rates}
    Graceful(apps["Graceful(app)"])
    with redis.client() as client:
        for app in apps.values():
            _send(app, client, tasks)  # connects
        for number in range(rounds):
            for name in sorted(rates, reverse=bool(number % 2)):
                rates[name].append(_send(apps[name], client, tasks))
    for app in apps.values():
        app.close()
    plain, ours = rates["plain Celery"], rates["Graceful(app)"]
    ratio = median(b / a for a, b in zip(plain, ours, strict=True))
    rows = [
        ("plain Celery", f"{median(plain):.0f}", "1"),
        ("Graceful(app)", f"{median(ours):.0f}", f"{ratio:.2f}"),
    ]
    return table(("", "tasks/s", "ratio"), rows)


def _send(app: Any, client: Any, tasks: int) -> float:
    client.delete("publishing")
    began = time.monotonic()
    for number in range(tasks):
        app.send_task("nobody.runs.it", (number,), queue="publishing")
    return tasks / (time.monotonic() - began)
