"""For tests of tasks: run one, interrupt it, kill it, and let it go on, in this very process.

Come in by the names below. No broker and no Redis: what a task saves is kept in memory, and all
else is what a worker does. See docs/testing.md.
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

from celery_graceful.testing.events import (
    Event,
    interrupt_after_step,
    interrupt_at,
    interrupt_at_checkpoint,
    interrupt_in_step,
    kill_at,
    soft_deadline_after,
)
from celery_graceful.testing.observer import Row, Step
from celery_graceful.testing.survival import assert_survives_interruptions
from celery_graceful.testing.tested_run import GracefulRun, NotReached, Outcome, graceful_run

if _TYPE_CHECKING:
    from celery_graceful.testing.hypothesis_schedules import schedules


def __getattr__(name: str) -> object:
    """Hypothesis is imported by whoever uses it."""
    if name == "schedules":
        return _importlib.import_module("celery_graceful.testing.hypothesis_schedules").schedules
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Event",
    "GracefulRun",
    "NotReached",
    "Outcome",
    "Row",
    "Step",
    "assert_survives_interruptions",
    "graceful_run",
    "interrupt_after_step",
    "interrupt_at",
    "interrupt_at_checkpoint",
    "interrupt_in_step",
    "kill_at",
    "schedules",
    "soft_deadline_after",
]
