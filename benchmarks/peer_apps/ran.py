"""The task that all run: it notes that it has run, in memory that all processes share."""

from __future__ import annotations

import mmap
import os
import time

__all__ = ["URL", "note", "work"]

URL = os.environ["BENCH_PEER_REDIS"]

with open(os.environ["BENCH_PEER_RAN"], "r+b") as _file:
    _ran = mmap.mmap(_file.fileno(), 0)


def note(number: int) -> None:
    """Note that this one has ended; that survives ``kill -9``."""
    _ran[number] = 1


def work(number: int, seconds: float = 0) -> None:
    """Take so long."""
    if seconds:
        time.sleep(seconds)
    note(number)
