"""What it costs a task to go on where it stopped: per item, per save, in memory."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from celery import Celery
from celery.app import trace

from benchmarks.memory import Growth
from benchmarks.tables import percentile, table
from celery_graceful import GracefulTask
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import Board
from tests.servers import RedisServer

__all__ = ["iterate"]

ROUNDS = 5


def iterate(redis: RedisServer, *, quick: bool) -> str:
    """What ``iterate`` costs an item, and a save, against a plain ``for``."""
    items = 200_000 if quick else 2_000_000
    memory = 1_000_000 if quick else 10_000_000
    saves = 300 if quick else 3_000
    found: dict[str, Any] = {}
    with Celery("iterate", broker="memory://", set_as_current=False) as app:
        app.conf.graceful_store = redis.url()

        @app.task(base=GracefulTask, bind=True, name="measured", ignore_result=True)
        def task(self: Any) -> None:
            growth = Growth()
            run(self.iterate(range(memory)))
            found["memory"] = growth.kilobytes()
            found["items"] = {
                "for over a range": fastest(lambda: range(items)),
                "for over iter(range)": fastest(lambda: iter(range(items))),
                "the check alone, in a generator": fastest(lambda: checked(range(items))),
                "self.iterate(range)": fastest(lambda: self.iterate(range(items))),
                "self.iterate(list)": fastest(lambda data=list(range(items)): self.iterate(data)),
                "self.iterate(generator)": fastest(lambda: self.iterate(x for x in range(items))),
            }
            found["saves"] = [one_save(self, number) for number in range(saves)]
            found["every=1"] = fastest(lambda: self.iterate(range(saves), every=1))

        deliver(app, task)
    each = {name: took / items * 1e9 for name, took in found["items"].items()}
    plain = each["for over iter(range)"]
    rows = [(name, f"{cost:.0f}", f"{cost - plain:+.0f}") for name, cost in each.items()]
    micro = [took * 1e6 for took in found["saves"]]
    others = [
        ("a save, median", f"{percentile(micro, 50):.0f} us"),
        ("a save, p99", f"{percentile(micro, 99):.0f} us"),
        ("an item with every=1", f"{found['every=1'] / saves * 1e6:.0f} us"),
        (f"growth of the peak memory over {memory:,} items", f"{found['memory']} KiB"),
    ]
    heads = ("one item", "ns", "over iter")
    return f"{table(heads, rows)}\n\n{table(('', 'cost'), others)}"


def deliver(app: Celery, task: Any) -> None:
    """Run the task in this process, as a pool's child does."""
    worker_state.attach(Board.create())
    try:
        request = {"id": uuid.uuid4().hex, "retries": 0, "delivery_info": {}}
        _, failure, *_ = trace.build_tracer(task.name, task, app=app)(
            request["id"], (), {}, request
        )
        assert failure is None, failure.retval
    finally:
        worker_state.detach()


def checked(source: Iterable[int]) -> Iterable[int]:
    """A generator that does no more than look at the flag and at the clock."""
    flag, clock, due = worker_state.flag.value, time.monotonic, time.monotonic() + 3600
    for item in source:
        yield item
        if flag[0] or clock() >= due:
            raise AssertionError


def run(loop: Iterable[Any]) -> None:
    for _ in loop:
        pass


def fastest(make: Callable[[], Iterable[Any]]) -> float:
    """Seconds of the fastest of some rounds: the others were disturbed."""
    times = []
    for _ in range(ROUNDS):
        loop = make()
        began = time.perf_counter()
        run(loop)
        times.append(time.perf_counter() - began)
    return min(times)


def one_save(task: Any, number: int) -> float:
    began = time.perf_counter()
    task.checkpoint({"rows": number})
    return time.perf_counter() - began
