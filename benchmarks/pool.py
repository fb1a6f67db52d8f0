"""Where the time of an empty task goes on prefork: Celery's pool without a worker around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from statistics import median
from typing import Any

import psutil

from benchmarks.tables import table
from benchmarks.throughput import CONTENDERS, play, prepare
from benchmarks.workers import TIMEOUT, Worker
from tests.servers import RedisServer

__all__ = ["pool"]

PROCESSES = 2

Used = tuple[float, float, float]


def pool(redis: RedisServer, *, quick: bool) -> str:
    """Empty tasks by two processes: Celery's pool alone, and workers around it; medians.

    The pool is handed a task when another one has ended, as by a worker.
    """
    tasks, rounds = (600, 3) if quick else (4000, 5)
    found: dict[str, list[Used]] = {"Celery's pool alone": []}
    with redis.client() as client:
        client.flushdb()
        for contender in CONTENDERS:
            prepare(client, contender.task, tasks)
            name, queue = contender.name, f"pool-{CONTENDERS.index(contender)}"
            found[name] = []
            options = {"pool": "prefork", "concurrency": PROCESSES, "plain": contender.plain}
            with Worker(queue, **options) as worker:
                worker.wait("ready")
                for number in range(rounds + 1):
                    before = _cpu(worker.process.pid)
                    took = play(client, f"stage-{contender.task}", queue)
                    if number:  # the first one warms up
                        used = (
                            b - a for a, b in zip(before, _cpu(worker.process.pid), strict=True)
                        )
                        found[name].append((took / tasks, *(each / tasks for each in used)))
    for _ in range(rounds):
        command = [sys.executable, "-m", "benchmarks.pool", str(tasks)]
        ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT)
        took, main, children = json.loads(ran.stdout.splitlines()[-1])
        found["Celery's pool alone"].append((took, main, children))
    rows = [
        (name, f"{1 / wall:.0f}", f"{main * 1e6:.0f}", f"{children * 1e6:.0f}")
        for name, (wall, main, children) in (
            (name, map(median, zip(*some, strict=True))) for name, some in found.items()
        )
    ]
    head = (f"prefork -c {PROCESSES}", "tasks/s", "main process, us", "children, us")
    return table(head, rows)


def _cpu(pid: int) -> tuple[float, float]:
    """Seconds that a process has used of the processor, and its children."""

    def used(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    main = psutil.Process(pid)
    return used(main), sum(map(used, main.children(recursive=True)))


def alone(tasks: int) -> tuple[float, float, float]:
    """The pool in the hands of this process: seconds a task, here and in its children."""
    os.environ["BENCH_PLAIN"] = "1"
    from celery.app.trace import fast_trace_task, setup_worker_optimizations
    from celery.concurrency.prefork import TaskPool
    from kombu.asynchronous import Hub, set_event_loop

    from benchmarks.app import app

    app.finalize()
    setup_worker_optimizations(app, "pool@bench")
    hub = Hub()
    set_event_loop(hub)
    options = {"putlocks": False, "threads": False, "sched_strategy": None, "app": app}
    workers = TaskPool(PROCESSES, initargs=(app, "pool@bench"), **options)
    workers.start()
    workers.register_with_event_loop(hub)
    loop = hub.create_loop()
    name, body = "benchmarks.app.empty", b'[[], {}, {"callbacks": null, "chain": null}]'
    waiting, ended = 0, 0

    def hand_over() -> None:
        nonlocal waiting
        if waiting:
            waiting -= 1
            task_id = str(uuid.uuid4())
            request = {"id": task_id, "task": name, "delivery_info": {}, "hostname": "pool@bench"}
            workers.apply_async(
                fast_trace_task,
                args=(name, task_id, request, body, "application/json", "utf-8"),
                accept_callback=lambda *_: None,
                callback=has_ended,
                error_callback=has_ended,
                correlation_id=task_id,
            )

    def has_ended(*_: Any) -> None:
        nonlocal ended
        ended += 1
        hand_over()

    def play_all() -> tuple[float, float, float]:
        nonlocal waiting, ended
        waiting, ended = tasks, 0
        before, began = _cpu(os.getpid()), time.monotonic()
        for _ in range(PROCESSES):
            hand_over()
        while ended < tasks:
            next(loop)
        took = time.monotonic() - began
        main, children = (b - a for a, b in zip(before, _cpu(os.getpid()), strict=True))
        return took / tasks, main / tasks, children / tasks

    try:
        play_all()
        return play_all()
    finally:
        workers.terminate()


if __name__ == "__main__":
    print(json.dumps(alone(int(sys.argv[1]))), flush=True)
    os._exit(0)  # billiard's children have been told
