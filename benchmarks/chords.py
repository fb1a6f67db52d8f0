"""What tracking costs a chord: from its sending to the end of its body, and in processor time."""

from __future__ import annotations

import time
from contextlib import ExitStack
from statistics import median

from celery import Celery, chord

from benchmarks.tables import table
from benchmarks.workers import TIMEOUT, Worker
from celery_graceful import Graceful
from tests.servers import RedisServer

__all__ = ["chords"]


def chords(redis: RedisServer, *, quick: bool) -> str:
    """Members a second of one chord on threads -c 10, sending included."""
    members, rounds = (500, 5) if quick else (10_000, 3)
    found: dict[str, list[tuple[float, ...]]] = {"untracked": [], "tracked": []}
    with ExitStack() as stack:
        apps, workers = {}, {}
        for name in found:
            track = "1" if name == "tracked" else ""
            env = {"BENCH_RESULTS": redis.url(), "BENCH_CHORDS": track}
            queue = f"chords-{name}"
            worker = Worker(queue, pool="threads", concurrency=10, env=env)
            workers[name] = stack.enter_context(worker)
            app = Celery(name, broker=redis.url(), backend=redis.url(), set_as_current=False)
            app.conf.graceful_track_chords = bool(track)
            app.conf.task_default_queue = queue
            apps[name] = Graceful(app).app
            stack.callback(app.close)
            _round(app, workers[name], 50)  # the first one warms up
        for number in range(rounds):
            for name in sorted(apps, reverse=bool(number % 2)):
                found[name].append(_round(apps[name], workers[name], members))
    rows = []
    for name, rounds_of in found.items():
        row = [name]
        for which in range(4):
            row.append(f"{median(one[which] for one in rounds_of):.0f}")
            pairs = zip(found["untracked"], rounds_of, strict=True)
            row.append(f"{median(b[which] / a[which] for a, b in pairs):.2f}")
        rows.append(row)
    rate = ("members/s", "ratio", "sent/s", "ratio")
    cpu = ("CPU us/member, sender", "ratio", "worker", "ratio")
    return table((f"chord of {members}", *rate, *cpu), rows)


def _round(app: Celery, worker: Worker, members: int) -> tuple[float, ...]:
    """Members a second, and sent a second; microseconds of processor that sender and worker use."""
    worked, sends, began = worker.cpu_seconds(), time.process_time(), time.monotonic()
    header = [app.signature("benchmarks.app.empty", (i,)) for i in range(members)]
    result = chord(header, app.signature("benchmarks.app.empty")).apply_async()
    sent, sends = time.monotonic() - began, time.process_time() - sends
    result.get(timeout=TIMEOUT * 5)
    took, worked = time.monotonic() - began, worker.cpu_seconds() - worked
    return members / took, members / sent, sends / members * 1e6, worked / members * 1e6
