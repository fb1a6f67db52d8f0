"""What it costs an idle worker that somebody watches it: probes, metrics, history."""

from __future__ import annotations

import socket
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import psutil

from benchmarks.tables import table
from benchmarks.workers import Worker
from tests.servers import RedisServer

__all__ = ["watched"]

#: Seconds until a worker has settled, for which it is measured then, and between two collections.
SETTLE, MEASURED, EVERY = 5.0, 60.0, 15.0

_KINDS = ("plain", "ours", "ours, all on")


def watched(redis: RedisServer, *, quick: bool) -> str:
    """Of an idle prefork worker with 2 children, all of its processes; medians."""
    rounds = [_round(redis) for _ in range(1 if quick else 3)]
    rows = []
    for kind in _KINDS:
        cpu, main, all_of_it = (median(one[kind][i] for one in rounds) for i in range(3))
        rows.append((kind, f"{cpu:.2f}", f"{main:.1f}", f"{all_of_it:.1f}"))
    return table(("", "% of a core", "main process, MiB", "all, shared once, MiB"), rows)


def _round(redis: RedisServer) -> dict[str, tuple[float, float, float]]:
    """Side by side, so that what else the machine does is the same to all."""
    with ExitStack() as stack:
        client = stack.enter_context(redis.client())
        client.flushdb()
        folder, port = Path(stack.enter_context(tempfile.TemporaryDirectory())), _free_port()
        on = {"BENCH_PROBE_FILE": str(folder / "probe"), "BENCH_PROBE_PORT": str(port)}
        workers = {
            kind: stack.enter_context(
                Worker(
                    "idle",
                    name=f"idle-{number}",
                    pool="prefork",
                    concurrency=2,
                    plain=kind == "plain",
                    env=on if kind == _KINDS[-1] else {},
                )
            )
            for number, kind in enumerate(_KINDS)
        }
        for worker in workers.values():
            worker.wait("ready")
        time.sleep(SETTLE)
        began, before = time.monotonic(), {kind: _cpu(w) for kind, w in workers.items()}
        while time.monotonic() < began + MEASURED:
            url = f"http://127.0.0.1:{port}/metrics"
            urllib.request.urlopen(url, timeout=10).close()
            time.sleep(EVERY)
        took = time.monotonic() - began
        return {
            kind: (100 * (_cpu(w) - before[kind]) / took, *_memory(w))
            for kind, w in workers.items()
        }


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _processes(worker: Worker) -> list[psutil.Process]:
    main = psutil.Process(worker.process.pid)
    return [main, *main.children(recursive=True)]


def _cpu(worker: Worker) -> float:
    """Seconds of processor time that it has had."""
    return sum(t.user + t.system for t in (p.cpu_times() for p in _processes(worker)))


def _memory(worker: Worker) -> tuple[float, float]:
    found = [process.memory_full_info() for process in _processes(worker)]
    return found[0].rss / 2**20, sum(info.pss for info in found) / 2**20
