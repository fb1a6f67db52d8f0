"""What batches cost: beside chords, in the producer, in Redis, and in the worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from celery import Celery, chord

from benchmarks.commands import Commands
from benchmarks.memory import Growth
from benchmarks.tables import table
from benchmarks.throughput import play
from benchmarks.waiting import held, wait_until
from benchmarks.workers import TIMEOUT, Worker
from celery_graceful import Batch, Graceful
from tests.servers import RedisServer

__all__ = ["batches", "main"]

#: Microseconds from which Redis notes a command as slow.
SLOW = 500

#: Times the usual that a wait here may take.
PATIENCE = 10 * TIMEOUT

_ROOT = Path(__file__).parent.parent


def batches(redis: RedisServer, *, quick: bool) -> str:
    """10,000 members beside a chord; 100,000 of them; a worker with and without a batch."""
    parts = (
        _beside_chords(redis, *((1000, 3) if quick else (10_000, 3))),
        _many(redis, 10_000 if quick else 100_000),
        _throughput(redis, *((2000, 5) if quick else (16_000, 9))),
    )
    return "\n\n".join(parts)


def _app(redis: RedisServer, *, graceful: bool, results: bool = False) -> Celery:
    app = Celery("bench", broker=redis.url(), set_as_current=False)
    app.conf.update(result_backend=redis.url() if results else None)
    app.conf.task_ignore_result = not results
    if graceful:
        Graceful(app)
    return app


# -- beside chords ---------------------------------------------------------------------


def _beside_chords(redis: RedisServer, members: int, rounds: int) -> str:
    contenders: dict[str, tuple[bool, bool, Callable[[Celery, str, int], None]]] = {
        "chord, plain Celery": (False, True, _send_chord),
        "chord, Graceful(app)": (True, True, _send_chord),
        "Batch, results kept": (True, True, _send_batch),
        "Batch, results ignored": (True, False, _send_batch),
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    with ExitStack() as stack:
        client = stack.enter_context(redis.client())
        client.flushdb()
        workers = {}
        for number, (name, (graceful, results, _)) in enumerate(contenders.items()):
            env = {"BENCH_RESULTS": redis.url()} if results else {}
            worker = Worker(
                f"batches-{number}",
                pool="threads",
                concurrency=10,
                plain=not graceful,
                prefetch=10,
                env=env,
            )
            workers[name] = stack.enter_context(worker)
            worker.wait("ready")
        for turn in range(-1, rounds):  # the first one warms up
            for name in list(contenders)[:: -1 if turn % 2 else 1]:
                graceful, results, send = contenders[name]
                app = _app(redis, graceful=graceful, results=results)
                began = time.monotonic()
                send(app, workers[name].queue_name, 100 if turn < 0 else members)
                sent = time.monotonic() - began
                (done,) = workers[name].wait("done", timeout=PATIENCE)
                if turn >= 0:
                    took[name].append((sent, done.at - began))
                app.close()
    first = took["chord, plain Celery"]
    rows = [
        (
            name,
            *(f"{median(times[i] for times in found):.2f}" for i in range(2)),
            f"{median(a[1] / b[1] for a, b in zip(first, found, strict=True)):.2f}",
        )
        for name, found in took.items()
    ]
    head = (f"{members:,} members, threads -c 10", "sent after s", "callback after s", "times")
    return table(head, rows)


def _send_chord(app: Celery, queue: str, members: int) -> None:
    one = app.signature("benchmarks.app.empty", immutable=True, queue=queue)
    chord(
        [one.clone() for _ in range(members)],
        app.signature("benchmarks.app.done", queue=queue),
        app=app,
    ).apply_async()


def _send_batch(app: Celery, queue: str, members: int) -> None:
    one = app.signature("benchmarks.app.empty", immutable=True, queue=queue)
    batch = Batch(on_complete=app.signature("benchmarks.app.done", queue=queue), app=app)
    batch.apply_async(one for _ in range(members))


# -- very many -------------------------------------------------------------------------


def _many(redis: RedisServer, members: int) -> str:
    with redis.client() as client, _slow_commands(client) as slow:
        client.flushdb()
        made = _produce(redis, members)
        keys = [*client.keys(f"graceful:batch:{made['batch']}*"), "graceful:batches"]
        store = sum(client.memory_usage(key, samples=0) or 0 for key in keys)
        queue = client.memory_usage("many", samples=0)
        while_sent = slow()
        with Worker("many", pool="threads", concurrency=10, prefetch=10) as worker:
            worker.wait("ready")
            wait_until(
                lambda: not (client.llen("many") or held(client)),
                "all members have ended",
                client,
                seconds=PATIENCE,
                pause=0.05,
            )
        rows = [
            ("sent after s", f"{made['took']:.1f}"),
            ("peak memory of the producer over its start, MiB", f"{made['memory'] / 1024:.1f}"),
            ("in Redis: the batch, MB", f"{store / 1e6:.1f}"),
            ("in Redis: the messages, MB", f"{queue / 1e6:.1f}"),
            ("longest command while they are sent, ms", while_sent),
            ("longest command while they run, ms", slow()),
        ]
    return table((f"{members:,} members from a generator", ""), rows)


@contextmanager
def _slow_commands(client: Any) -> Iterator[Callable[[], str]]:
    """The longest command since it was asked last, in milliseconds, and how many took 10.

    On the clock: where Redis has to wait for a processor some are long that are not many.
    """
    before = client.config_get("slowlog-*")
    client.config_set("slowlog-log-slower-than", SLOW)
    client.config_set("slowlog-max-len", 10_000)

    def longest() -> str:
        found = client.slowlog_get(10_000)
        client.slowlog_reset()
        ours = [one for one in found if one["command"].split(b" ")[0] not in _OURS]
        took = [one["duration"] / 1000 for one in ours] or [SLOW / 1000]
        return f"{max(took):.2f} (over 10: {sum(one > 10 for one in took)})"

    client.slowlog_reset()
    yield longest
    for name, value in before.items():
        client.config_set(name, value)


#: What the benchmark asks itself.
_OURS = (b"MEMORY", b"KEYS", b"FLUSHDB", b"SLOWLOG", b"CONFIG", b"COPY")


def _produce(redis: RedisServer, members: int) -> dict[str, Any]:
    """In a process of its own, whose memory nobody else has used."""
    argv = [sys.executable, "-m", "benchmarks.batches", redis.url(), str(members)]
    done = subprocess.run(argv, cwd=_ROOT, stdout=subprocess.PIPE, check=True, env={**os.environ})
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Send so many members, and say what it cost."""
    url, members = sys.argv[1], int(sys.argv[2])
    app = Celery("many", broker=url)
    app.conf.task_ignore_result = True
    Graceful(app)
    one = app.signature("benchmarks.app.empty", immutable=True, queue="first")
    Batch(app=app).apply_async([one.clone() for _ in range(10)])  # connects, imports
    growth = Growth()
    batch, began = Batch(app=app), time.monotonic()
    batch.apply_async(
        app.signature("benchmarks.app.empty", (n,), queue="many") for n in range(members)
    )
    took = time.monotonic() - began
    print(json.dumps({"batch": batch.id, "took": took, "memory": growth.kilobytes()}))


# -- what it costs a worker --------------------------------------------------------------


def _throughput(redis: RedisServer, tasks: int, rounds: int) -> str:
    rows = []
    for pool, concurrency, task, count in (
        ("prefork", 2, "empty", tasks),
        ("prefork", 2, "empty_graceful", tasks),
        ("prefork", 2, "millisecond", tasks // 4),
        ("threads", 10, "empty", tasks),
        ("threads", 10, "empty_graceful", tasks),
        ("threads", 10, "millisecond", tasks // 4),
    ):
        with ExitStack() as stack:
            client = stack.enter_context(redis.client())
            client.flushdb()
            queue = f"batches-{pool}"
            worker = Worker(queue, pool=pool, concurrency=concurrency)
            stack.enter_context(worker)
            worker.wait("ready")
            stages = [_Stage(redis, client, task, count, in_batch=b) for b in (False, True)]
            found: tuple[list[tuple[float, float, float]], ...] = ([], [])
            for turn in range(-1, rounds):  # the first one warms up
                for in_batch in (False, True) if turn % 2 else (True, False):
                    stages[in_batch].restore()
                    used, asked = worker.cpu_seconds(), Commands(client)
                    rate = count / play(client, stages[in_batch].key, queue)
                    used, commands = worker.cpu_seconds() - used, asked.count()
                    if turn >= 0:
                        found[in_batch].append((rate, used / count * 1e6, commands / count))
        shown = [f"{pool} -c {concurrency}, {task}"]
        pairs = list(zip(*found, strict=True))
        for which in range(2):
            shown += [f"{median(one[which] for one in some):.0f}" for some in found]
            shown.append(f"{median(b[which] / a[which] for a, b in pairs):.3f}")
            if which == 0:
                shown.append(f"{median(1e6 / b[0] - 1e6 / a[0] for a, b in pairs):+.0f}")
        shown += [f"{median(one[2] for one in some):.1f}" for some in found]
        rows.append(shown)
    rate = ("/s", "in a batch", "ratio", "us more")
    cpu = ("CPU us/task", "in a batch", "ratio")
    return table(("pool and task", *rate, *cpu, "commands/task", "in a batch"), rows)


class _Stage:
    """Messages, and what the store knows of their batch, to begin with again and again.

    Args:
        redis: Where they are.
        client: A client of it.
        task: Of ``benchmarks.app``.
        tasks: How many.
        in_batch: Whether they are members.
    """

    def __init__(
        self, redis: RedisServer, client: Any, task: str, tasks: int, *, in_batch: bool
    ) -> None:
        self._client, self.key = client, f"stage-{in_batch}"
        app = _app(redis, graceful=True)
        one = app.signature(f"benchmarks.app.{task}", queue=self.key)
        if in_batch:
            Batch(app=app).apply_async(one.clone() for _ in range(tasks))
        else:
            for _ in range(tasks):
                one.apply_async()
        app.close()
        self._batch = client.keys("graceful:batch*") if in_batch else []
        for key in self._batch:
            client.copy(key, f"before:{key}")

    def restore(self) -> None:
        """Nothing of it has run."""
        for key in self._batch:
            self._client.copy(f"before:{key}", key, replace=True)


if __name__ == "__main__":
    main()
