"""Whether this commit is as fast as another one: ``python -m benchmarks.check [commit]``.

Both run in the same run, in turns, so that a machine with more to do slows both of them down. With
``--counts`` calls of functions and commands of Redis are compared, which no machine changes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.commands import Commands
from benchmarks.tables import table
from benchmarks.throughput import SETUPS, play
from benchmarks.workers import TIMEOUT, Worker, send
from tests.servers import RedisServer

__all__ = ["main"]

_ROOT = Path(__file__).parent.parent

#: What the speed of this commit has to be at least, that of the other one being 1.
LEAST = 0.95

#: How often as many rounds more are made before it is said to be slower.
ATTEMPTS = 3

#: Commands of Redis that a task may ask for more: how many go together is a matter of moments.
MORE_COMMANDS = 0.5

TASK = "empty_graceful"

#: What is measured of a round of one worker.
_Pair = tuple[float, float]


def main() -> None:
    """Compare; exit status 1 if this one is slower."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description=__doc__)
    parser.add_argument("commit", nargs="?", default="HEAD~1", help="HEAD~1, if not said")
    parser.add_argument("--tasks", type=int, default=2000, help="in each round; 2000")
    parser.add_argument("--rounds", type=int, default=7, help="of each commit; 7")
    parser.add_argument("--counts", action="store_true", help="count: quicker, and never by chance")
    options = parser.parse_args()
    if not _is_there(options.commit):
        print(f"There is no {options.commit} here to compare with")
        return
    compare = _compare_counts if options.counts else _compare_speed
    with RedisServer() as redis, tempfile.TemporaryDirectory() as folder:
        os.environ["BENCH_REDIS"] = redis.url()
        trees = {
            name: _tree(Path(folder) / str(number), commit)
            for number, (name, commit) in enumerate(
                {f"{options.commit}": options.commit, "this": None}.items()
            )
        }
        worse = compare(redis, trees, options.tasks, options.rounds)
    if worse:
        sys.exit(f"{' and '.join(worse)}: under {LEAST:g} of the speed of {options.commit}")


def _compare_speed(
    redis: RedisServer, trees: dict[str, Path], tasks: int, rounds: int
) -> list[str]:
    """Print tasks a second, and what they take of the processor; where this one is slower."""
    rows, slower = [], []
    for pool, concurrency in SETUPS:
        old: list[_Pair] = []
        new: list[_Pair] = []
        for _ in range(ATTEMPTS):  # a machine that has much else to do makes one look slow
            with _workers(redis, trees, pool, concurrency, tasks) as (client, workers):
                found = _in_turns(workers, rounds, lambda one: _speed(client, one, tasks))
            old += found[0]
            new += found[1]
            rate = median(b[0] / a[0] for a, b in zip(old, new, strict=True))
            if rate >= LEAST:
                break
        cpu = median(b[1] / a[1] for a, b in zip(old, new, strict=True))
        setup = f"{pool} -c {concurrency}"
        numbers = [f"{median(one[i] for one in some):.0f}" for i in (0, 1) for some in (old, new)]
        rows.append((setup, *numbers[:2], f"{rate:.2f}", *numbers[2:], f"{cpu:.2f}"))
        if rate < LEAST:
            slower.append(setup)
    rates, cpus = (*trees, "ratio"), ("CPU us a task", "this", "ratio")
    print(table(("tasks/s", *rates, *cpus), rows))
    return slower


def _compare_counts(
    redis: RedisServer, trees: dict[str, Path], tasks: int, rounds: int
) -> list[str]:
    """Print what a task takes on threads, where all of it is in one process; what has grown."""
    counting = {"BENCH_CALLS": "1"}
    with _workers(redis, trees, "threads", 10, tasks, counting) as (client, workers):
        found = _in_turns(workers, rounds, lambda one: _counts(client, one, tasks))
    # The least: what a worker does now and then comes on top.
    (calls, asks), (calls_now, asks_now) = (map(min, zip(*some, strict=True)) for some in found)
    rows = [
        ("calls of functions", f"{calls:.1f}", f"{calls_now:.1f}"),
        ("commands of Redis", f"{asks:.2f}", f"{asks_now:.2f}"),
    ]
    print(table(("a task on threads", *trees), rows))
    grown = (calls_now > calls / LEAST, asks_now > asks + MORE_COMMANDS)
    return [row[0] for row, has_grown in zip(rows, grown, strict=True) if has_grown]


def _is_there(commit: str) -> bool:
    command = ["git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"]
    asked = subprocess.run(command, cwd=_ROOT, stdout=subprocess.DEVNULL, timeout=TIMEOUT)
    return asked.returncode == 0


def _tree(folder: Path, commit: str | None) -> Path:
    """A folder with the package as it was, and the benchmarks' app as it is."""
    folder.mkdir()
    for name in ("benchmarks", "tests"):
        (folder / name).symlink_to(_ROOT / name)
    if commit is None:
        (folder / "celery_graceful").symlink_to(_ROOT / "celery_graceful")
    else:
        packed = subprocess.run(
            ["git", "archive", commit, "celery_graceful"],
            cwd=_ROOT,
            check=True,
            stdout=subprocess.PIPE,
            timeout=TIMEOUT,
        )
        command = ["tar", "-x", "-C", str(folder)]
        subprocess.run(command, check=True, input=packed.stdout, timeout=TIMEOUT)
    return folder


@contextmanager
def _workers(
    redis: RedisServer,
    trees: dict[str, Path],
    pool: str,
    concurrency: int,
    tasks: int,
    env: dict[str, str] | None = None,
) -> Iterator[tuple[Any, list[Worker]]]:
    """One for each tree, and a client of Redis, where messages for a round are."""
    with ExitStack() as stack:
        client = stack.enter_context(redis.client())
        client.flushdb()
        for _ in range(tasks):
            send("stage", TASK)
        options: dict[str, Any] = {"pool": pool, "concurrency": concurrency, "env": env}
        workers = [
            stack.enter_context(Worker(f"check-{number}", tree=tree, **options))
            for number, tree in enumerate(trees.values())
        ]
        for worker in workers:
            worker.wait("ready")
        yield client, workers


def _in_turns(
    workers: list[Worker], rounds: int, measure: Callable[[Worker], _Pair]
) -> list[list[_Pair]]:
    """What was measured of each worker; the first round warms up."""
    found: list[list[_Pair]] = [[] for _ in workers]
    for number in range(-1, rounds):
        for worker, some in list(zip(workers, found, strict=True))[:: -1 if number % 2 else 1]:
            one = measure(worker)
            if number >= 0:
                some.append(one)
    return found


def _speed(client: Any, worker: Worker, tasks: int) -> _Pair:
    """Tasks a second, and microseconds of processor time for each."""
    used = worker.cpu_seconds()
    took = play(client, "stage", worker.queue_name)
    return tasks / took, (worker.cpu_seconds() - used) / tasks * 1e6


def _counts(client: Any, worker: Worker, tasks: int) -> _Pair:
    """Calls of functions, and commands of Redis, for each task."""
    before, asked = _calls(worker), Commands(client)
    play(client, "stage", worker.queue_name)
    commands = asked.count()
    return (_calls(worker) - before) / tasks, commands / tasks


def _calls(worker: Worker) -> int:
    send(worker.queue_name, "counted")
    return int(worker.wait("calls")[0].value)


if __name__ == "__main__":
    main()
