"""Whose code an empty task is paid for on threads: Celery's, kombu's, ours."""

from __future__ import annotations

import json
import signal
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.tables import table
from benchmarks.throughput import CONTENDERS, cpu_of_round, play, prepare
from benchmarks.waiting import wait_until
from benchmarks.workers import TIMEOUT, Worker
from tests.servers import RedisServer

__all__ = ["shares"]

#: Columns, and the packages that they stand for.
WHOSE = {
    "kombu": ("kombu", "vine"),
    "redis-py": ("redis",),
    "Celery": ("celery", "billiard"),
    "ours": ("celery_graceful",),
    "Python's": ("Python", "benchmarks"),
}


def shares(redis: RedisServer, *, quick: bool) -> str:
    """Microseconds of processor time for an empty task on threads -c 10, by whose code runs.

    What is done in C counts for who calls it. A profiler tells the shares, and makes calls dearer.
    """
    tasks, rounds = (600, 3) if quick else (4000, 5)
    options = {"pool": "threads", "concurrency": 10}
    rows = []
    with redis.client() as client, tempfile.TemporaryDirectory() as folder:
        client.flushdb()
        for number, contender in enumerate(CONTENDERS):
            prepare(client, contender.task, tasks)
            file = Path(folder) / f"{number}.json"
            with Worker(f"shares-{number}", plain=contender.plain, **options) as worker:
                worker.wait("ready")
                used = [
                    cpu_of_round(client, worker, contender.task, tasks) for _ in range(rounds + 1)
                ]
            watched = {"BENCH_PROFILE": str(file)}
            queue = f"profiled-{number}"
            with Worker(queue, plain=contender.plain, env=watched, **options) as worker:
                worker.wait("ready")
                for _ in range(2):
                    play(client, f"stage-{contender.task}", queue)
                worker.process.send_signal(signal.SIGUSR2)
                wait_until(file.exists, "the profile is written", client, seconds=TIMEOUT)
            share = json.loads(file.read_text(encoding="utf-8"))
            cpu = median(used[1:]) * 1e6  # the first one warms up
            parts = [sum(share.get(name, 0) for name in names) * cpu for names in WHOSE.values()]
            rows.append((contender.name, *(f"{part:.0f}" for part in (*parts, cpu))))
    return table(("us a task", *WHOSE, "all"), rows)
