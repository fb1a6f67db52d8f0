"""Calls of functions in a worker: what its code does, whatever else the machine has to do."""

from __future__ import annotations

import itertools
import sys
import threading
from typing import Any

from celery.signals import worker_ready

__all__ = ["so_far", "watch"]

# As ``next`` is one step of the interpreter, threads need no lock.
_calls = itertools.count()


def watch() -> None:
    """Count in all threads that are started from now on, and in the main one of a worker."""
    threading.setprofile(_count)
    worker_ready.connect(_count_here)


def so_far() -> int:
    """Calls that were counted so far."""
    return next(_calls)


def _count(frame: Any, event: str, arg: Any) -> None:
    if event in ("call", "c_call"):
        next(_calls)


def _count_here(**_: Any) -> None:
    sys.setprofile(_count)
