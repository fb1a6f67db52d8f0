"""Celery workers that stop in time, and tasks that go on where they stopped."""

import importlib as _importlib
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
from celery_graceful.monitors import Monitor, checkin
from celery_graceful.phases import Interrupt, InterruptReason, Phase
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
from celery_graceful.task.base import INTERRUPTED, GracefulTask

if _TYPE_CHECKING:
    from celery_graceful.batches.batch import Batch, current_batch
    from celery_graceful.store import StoreAway

_ON_DEMAND = {
    "Batch": "celery_graceful.batches.batch",
    "StoreAway": "celery_graceful.store",
    "current_batch": "celery_graceful.batches.batch",
}


def __getattr__(name: str) -> object:
    """What not everybody needs: who has no coroutines need not import asyncio."""
    if name == "aio":
        return _importlib.import_module("celery_graceful.aio")
    if name in _ON_DEMAND:
        return getattr(_importlib.import_module(_ON_DEMAND[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
