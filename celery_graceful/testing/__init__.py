"""For tests of tasks: run one, interrupt it, kill it, and let it go on, in this very process.

Come in by the names below. No broker and no Redis: what a task saves is kept in memory, and all
else is what a worker does. Real workers are started by `Workers`. See docs/testing.md.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from celery_graceful.system.on_demand import on_demand as _on_demand
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
    from celery_graceful.testing.fake_monitor import FakeMonitor, SentCheckIn
    from celery_graceful.testing.hypothesis_schedules import schedules
    from celery_graceful.testing.worker_process import GracefulWorker, NotInTime, StopReport
    from celery_graceful.testing.workers import Workers

_ON_DEMAND = {
    "FakeMonitor": "celery_graceful.testing.fake_monitor",
    "GracefulWorker": "celery_graceful.testing.worker_process",
    "NotInTime": "celery_graceful.testing.worker_process",
    "SentCheckIn": "celery_graceful.testing.fake_monitor",
    "StopReport": "celery_graceful.testing.worker_process",
    "Workers": "celery_graceful.testing.workers",
    "schedules": "celery_graceful.testing.hypothesis_schedules",
}

# What not every test needs: hypothesis, real workers, a server.
__getattr__ = _on_demand(__name__, _ON_DEMAND)

__all__ = [
    "Event",
    "FakeMonitor",
    "GracefulRun",
    "GracefulWorker",
    "NotInTime",
    "NotReached",
    "Outcome",
    "Row",
    "SentCheckIn",
    "Step",
    "StopReport",
    "Workers",
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
