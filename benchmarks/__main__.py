"""Run benchmarks: ``python -m benchmarks [--quick] [--write] [name...]``."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from benchmarks.batches import batches
from benchmarks.chaos import chaos
from benchmarks.chords import chords
from benchmarks.extras import extras
from benchmarks.full_pool import full_pool
from benchmarks.idle import idle
from benchmarks.importing import importing
from benchmarks.iterate import iterate
from benchmarks.latency import latency, reading
from benchmarks.lifecycle import lifecycle
from benchmarks.page import as_json, is_on_page, replaced
from benchmarks.peers import peers
from benchmarks.plots import PLOTS, draw
from benchmarks.pool import pool
from benchmarks.publishing import publishing
from benchmarks.rabbitmq import rabbitmq
from benchmarks.reaction import reaction
from benchmarks.release import release
from benchmarks.rescue import rescue
from benchmarks.shares import shares
from benchmarks.throughput import throughput
from benchmarks.variants import variants
from benchmarks.waiting import holdings
from benchmarks.watched import watched
from tests.servers import RedisServer

__all__ = ["main"]

_ROOT = Path(__file__).parent.parent

#: Where figures are published; and where those of each run are left.
PAGE, RUNS = _ROOT / "docs/benchmarks.md", _ROOT / "build/benchmarks"

BENCHMARKS = {
    "latency": latency,
    "reading": reading,
    "iterate": iterate,
    "throughput": throughput,
    "shares": shares,
    "extras": extras,
    "pool": pool,
    "variants": variants,
    "full_pool": full_pool,
    "rabbitmq": rabbitmq,
    "publishing": publishing,
    "reaction": reaction,
    "importing": importing,
    "chords": chords,
    "idle": idle,
    "watched": watched,
    "lifecycle": lifecycle,
    "release": release,
    "rescue": rescue,
    "chaos": chaos,
    "batches": batches,
    "peers": peers,
}


def main() -> None:
    """Run those that are named, or all, against a Redis of their own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="fewer stops, tasks and rounds")
    parser.add_argument(
        "--write", action="store_true", help="write what has a place in docs/benchmarks.md there"
    )
    options = parser.parse_args()
    unknown = set(options.names) - BENCHMARKS.keys()
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    if options.write and find_spec("matplotlib") is None:
        parser.error("--write draws pictures as well: pip install --editable '.[bench]'")
    about, results = machine(), {}
    print(about, flush=True)
    RUNS.mkdir(parents=True, exist_ok=True)
    record = RUNS / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}.json"
    with RedisServer() as redis:
        os.environ["BENCH_REDIS"] = redis.url()  # for the app, here and in the workers
        for name in options.names or BENCHMARKS:
            began = time.monotonic()
            try:
                result = BENCHMARKS[name](redis, quick=options.quick)
            except Exception:
                with redis.client() as client:
                    print(f"{name}: Redis holds:\n{holdings(client)}", file=sys.stderr)
                raise
            took = time.monotonic() - began
            title = (BENCHMARKS[name].__doc__ or "").partition("\n")[0]
            print(f"\n## {name}\n\n{title}\n\n{result}\n\n({took:.0f} s)", flush=True)
            results[name] = result, took
            record.write_text(as_json(about, results), encoding="utf-8")
            if options.write and is_on_page(PAGE, name):
                PAGE.write_text(replaced(PAGE, name, about, result), encoding="utf-8")
                if name in PLOTS:
                    draw(PAGE, name)
    print(f"The figures are in {record.relative_to(_ROOT)}", flush=True)


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
