"""Whose code a worker spends its time in: of its main thread, and of a pool's threads.

Imported by ``benchmarks.app`` where it is asked for. Time is that of the processor, of each thread
for itself: what waits for another one takes none.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import signal
import time
from collections import Counter
from concurrent.futures import thread
from pathlib import Path
from typing import Any

from celery.signals import worker_ready

__all__ = ["watch"]

_HERE = Path(__file__).parent.parent

_profiles: list[cProfile.Profile] = []


def watch(file: str) -> None:
    """Look at each thread from its start on; write the shares of all when told by SIGUSR2."""
    run = thread._worker  # type: ignore[attr-defined]

    def profiled(*args: Any) -> None:
        _begin()
        run(*args)

    thread._worker = profiled  # type: ignore[attr-defined]
    worker_ready.connect(lambda **_: _begin(), weak=False)
    signal.signal(signal.SIGUSR2, lambda *_: _write(file))


def _begin() -> None:
    profile = cProfile.Profile(time.thread_time)
    _profiles.append(profile)
    profile.enable()


def _write(file: str) -> None:
    found: Counter[str] = Counter()
    for profile in _profiles:
        profile.snapshot_stats()
        profile.create_stats = lambda: None  # type: ignore[method-assign]
        stats: Any = pstats.Stats(profile)
        for (path, _, _), (_, _, seconds, _, callers) in stats.stats.items():
            if path == "~":  # in C, and its callers' business
                for (caller, _, _), (_, _, part, _) in callers.items():
                    found[_whose(caller)] += part
            else:
                found[_whose(path)] += seconds
    whole = sum(found.values())
    text = json.dumps({name: seconds / whole for name, seconds in found.items()})
    Path(f"{file}.part").write_text(text, encoding="utf-8")
    os.replace(f"{file}.part", file)


def _whose(path: str) -> str:
    for name in ("celery_graceful", "celery", "kombu", "billiard", "redis", "vine"):
        if f"{os.sep}{name}{os.sep}" in path:
            return name
    return "benchmarks" if path.startswith(str(_HERE / "benchmarks")) else "Python"
