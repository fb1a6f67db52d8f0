"""What tracking costs a chord: from its sending to the end of its body."""

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
    members, rounds = (500, 3) if quick else (10_000, 5)
    rates: dict[str, list[float]] = {"untracked": [], "tracked": []}
    sending: dict[str, list[float]] = {"untracked": [], "tracked": []}
    with ExitStack() as stack:
        apps = {}
        for name in rates:
            track = "1" if name == "tracked" else ""
            env = {"BENCH_RESULTS": redis.url(), "BENCH_CHORDS": track}
            queue = f"chords-{name}"
            stack.enter_context(Worker(queue, pool="threads", concurrency=10, env=env))
            app = Celery(name, broker=redis.url(), backend=redis.url(), set_as_current=False)
            app.conf.graceful_track_chords = bool(track)
            app.conf.task_default_queue = queue
            apps[name] = Graceful(app).app
            stack.callback(app.close)
            _round(app, 50)  # the first one warms up
        for number in range(rounds):
            for name in sorted(apps, reverse=bool(number % 2)):
                sent, took = _round(apps[name], members)
                sending[name].append(members / sent)
                rates[name].append(members / took)
    rows = []
    for name in rates:
        whole, part = (
            median(b / a for a, b in zip(of["untracked"], of[name], strict=True))
            for of in (rates, sending)
        )
        rate, sent = median(rates[name]), median(sending[name])
        rows.append((name, f"{rate:.0f}", f"{whole:.2f}", f"{sent:.0f}", f"{part:.2f}"))
    return table((f"chord of {members}", "members/s", "ratio", "sent/s", "ratio"), rows)


def _round(app: Celery, members: int) -> tuple[float, float]:
    """Seconds for the sending, and for all of it."""
    began = time.monotonic()
    header = [app.signature("benchmarks.app.empty", (i,)) for i in range(members)]
    result = chord(header, app.signature("benchmarks.app.empty")).apply_async()
    sent = time.monotonic() - began
    result.get(timeout=TIMEOUT * 5)
    return sent, time.monotonic() - began
