"""Run benchmarks: ``python -m benchmarks [--quick] [name...]``."""

from __future__ import annotations

import argparse
import os
import platform
import time
from importlib.metadata import version

from benchmarks.batches import batches
from benchmarks.chords import chords
from benchmarks.full_pool import full_pool
from benchmarks.idle import idle
from benchmarks.importing import importing
from benchmarks.iterate import iterate
from benchmarks.latency import latency, reading
from benchmarks.lifecycle import lifecycle
from benchmarks.publishing import publishing
from benchmarks.release import release
from benchmarks.rescue import rescue
from benchmarks.throughput import throughput
from benchmarks.variants import variants
from tests.servers import RedisServer

__all__ = ["main"]

BENCHMARKS = {
    "latency": latency,
    "reading": reading,
    "iterate": iterate,
    "throughput": throughput,
    "variants": variants,
    "full_pool": full_pool,
    "publishing": publishing,
    "importing": importing,
    "chords": chords,
    "idle": idle,
    "lifecycle": lifecycle,
    "release": release,
    "rescue": rescue,
    "batches": batches,
}


def main() -> None:
    """Run those that are named, or all, against a Redis of their own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="fewer stops, tasks and rounds")
    options = parser.parse_args()
    unknown = set(options.names) - BENCHMARKS.keys()
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    print(machine(), flush=True)
    with RedisServer() as redis:
        os.environ["BENCH_REDIS"] = redis.url()  # for the app, here and in the workers
        for name in options.names or BENCHMARKS:
            began = time.monotonic()
            result = BENCHMARKS[name](redis, quick=options.quick)
            took = time.monotonic() - began
            title = (BENCHMARKS[name].__doc__ or "").partition("\n")[0]
            print(f"\n## {name}\n\n{title}\n\n{result}\n\n({took:.0f} s)", flush=True)


def machine() -> str:
    """Facts that the numbers depend on."""
    load = " ".join(f"{number:.1f}" for number in os.getloadavg())
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("celery", "kombu", "redis", "gevent", "eventlet")
    )
    return (
        f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()}), "
        f"load before: {load}; Python {platform.python_version()}, {packages}"
    )


if __name__ == "__main__":
    main()
