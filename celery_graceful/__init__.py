"""Celery workers that stop in time, and tasks that go on where they stopped."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from celery_graceful.cleanup.callbacks import ExitHandle
from celery_graceful.cleanup.resource import Resource
from celery_graceful.exceptions import (
    BatchFinished,
    CheckpointError,
    Interrupted,
    PoisonedTask,
    SettingsError,
    ShutdownTimeLimit,
    TooManyInterruptions,
    UnknownBatch,
)
from celery_graceful.phases import INTERRUPTED, Interrupt, InterruptReason, Phase
from celery_graceful.plugin import Graceful
from celery_graceful.runs.interrupt import (
    current_interrupt,
    interrupt_callback,
    interrupted,
    interruptible,
    shield,
    sleep,
    wait_for_interrupt,
)
from celery_graceful.system import version as _version
from celery_graceful.system.on_demand import on_demand as _on_demand
from celery_graceful.task.base import GracefulTask

if _TYPE_CHECKING:
    from celery_graceful.batches.batch import Batch, current_batch
    from celery_graceful.monitors import Monitor, checkin
    from celery_graceful.store import StoreAway

_ON_DEMAND = {
    "Batch": "celery_graceful.batches.batch",
    "Monitor": "celery_graceful.monitors",
    "StoreAway": "celery_graceful.store",
    "checkin": "celery_graceful.monitors",
    "current_batch": "celery_graceful.batches.batch",
}


# Who has no coroutines need not import asyncio; a web process, nothing that reports runs.
__getattr__ = _on_demand(__name__, {**_ON_DEMAND, "aio": "celery_graceful.aio"})


__version__ = _version.VERSION

__all__ = [
    "INTERRUPTED",
    "Batch",
    "BatchFinished",
    "CheckpointError",
    "ExitHandle",
    "Graceful",
    "GracefulTask",
    "Interrupt",
    "InterruptReason",
    "Interrupted",
    "Monitor",
    "Phase",
    "PoisonedTask",
    "Resource",
    "SettingsError",
    "ShutdownTimeLimit",
    "StoreAway",
    "TooManyInterruptions",
    "UnknownBatch",
    "checkin",
    "current_batch",
    "current_interrupt",
    "interrupt_callback",
    "interrupted",
    "interruptible",
    "shield",
    "sleep",
    "wait_for_interrupt",
]
