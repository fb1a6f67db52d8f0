"""Whether this commit is as fast as another one: ``python -m benchmarks.check [commit]``.

Both run in the same run, in turns, so that a machine with more to do slows both of them down.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

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

TASK = "empty_graceful"


def main() -> None:
    """Compare; exit status 1 if this one is slower."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description=__doc__)
    parser.add_argument("commit", nargs="?", default="HEAD~1", help="HEAD~1, if not said")
    parser.add_argument("--tasks", type=int, default=2000, help="in each round; 2000")
    parser.add_argument("--rounds", type=int, default=7, help="of each commit; 7")
    options = parser.parse_args()
    with RedisServer() as redis, tempfile.TemporaryDirectory() as folder:
        os.environ["BENCH_REDIS"] = redis.url()
        trees = {
            name: _tree(Path(folder) / str(number), commit)
            for number, (name, commit) in enumerate(
                {f"{options.commit}": options.commit, "this": None}.items()
            )
        }
        rows, slower = [], []
        for pool, concurrency in SETUPS:
            old: list[tuple[float, float]] = []
            new: list[tuple[float, float]] = []
            for _ in range(ATTEMPTS):  # a machine that has much else to do makes one look slow
                for all_of, some in zip(
                    (old, new),
                    _rounds(redis, pool, concurrency, trees, options.tasks, options.rounds),
                    strict=True,
                ):
                    all_of += some
                rate = median(b[0] / a[0] for a, b in zip(old, new, strict=True))
                if rate >= LEAST:
                    break
            cpu = median(b[1] / a[1] for a, b in zip(old, new, strict=True))
            setup = f"{pool} -c {concurrency}"
            numbers = [
                f"{median(one[i] for one in some):.0f}" for i in (0, 1) for some in (old, new)
            ]
            rows.append((setup, *numbers[:2], f"{rate:.2f}", *numbers[2:], f"{cpu:.2f}"))
            if rate < LEAST:
                slower.append(setup)
    rates, cpus = (options.commit, "this", "ratio"), ("CPU us a task", "this", "ratio")
    print(table(("tasks/s", *rates, *cpus), rows))
    if slower:
        sys.exit(f"{' and '.join(slower)}: under {LEAST:g} of the speed of {options.commit}")


def _tree(folder: Path, commit: str | None) -> Path:
    """A folder with the package as it was, and the benchmarks' app as it is."""
    (folder / "benchmarks").mkdir(parents=True)
    for name in ("__init__", "app"):
        shutil.copy(_ROOT / f"benchmarks/{name}.py", folder / "benchmarks")
    if commit is None:
        shutil.copytree(_ROOT / "celery_graceful", folder / "celery_graceful")
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


def _rounds(
    redis: RedisServer,
    pool: str,
    concurrency: int,
    trees: dict[str, Path],
    tasks: int,
    rounds: int,
) -> list[list[tuple[float, float]]]:
    """Tasks a second, and microseconds of processor time for each, of each commit."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
    with ExitStack() as stack:
        client = stack.enter_context(redis.client())
        client.flushdb()
        for _ in range(tasks):
            send("stage", TASK)
        workers = {
            name: stack.enter_context(
                Worker(f"check-{number}", pool=pool, concurrency=concurrency, tree=tree)
            )
            for number, (name, tree) in enumerate(trees.items())
        }
        for number in range(-1, rounds):  # the first one warms up
            for name in list(workers)[:: -1 if number % 2 else 1]:
                one = _round(client, workers[name], tasks)
                if number >= 0:
                    found[name].append(one)
    return list(found.values())


def _round(client: Any, worker: Worker, tasks: int) -> tuple[float, float]:
    used = worker.cpu_seconds()
    took = play(client, "stage", worker.queue_name)
    return tasks / took, (worker.cpu_seconds() - used) / tasks * 1e6


if __name__ == "__main__":
    main()
