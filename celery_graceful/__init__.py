"""Celery workers that stop in time, and tasks that go on where they stopped."""

import importlib as _importlib

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
from celery_graceful.task.base import INTERRUPTED, GracefulTask


def __getattr__(name: str) -> object:
    """``celery_graceful.aio``: who has no coroutines need not import asyncio."""
    if name == "aio":
        return _importlib.import_module("celery_graceful.aio")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "INTERRUPTED",
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
    "TooManyInterruptions",
    "UnknownBatch",
    "checkin",
    "current_interrupt",
    "interrupt_callback",
    "interrupted",
    "interruptible",
    "shield",
    "sleep",
    "wait_for_interrupt",
]
