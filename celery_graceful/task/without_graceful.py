"""Graceful tasks of an app that is not made graceful: they run as plain ones do, which is said."""

from __future__ import annotations

from typing import Any

from celery.signals import worker_ready
from celery.utils.log import get_logger

from celery_graceful.checkpoints.resume import Resumable
from celery_graceful.system.describe import shortened

__all__ = ["watch"]

logger = get_logger(__name__)

#: Tasks that the line names.
NAMED = 5


def watch() -> None:
    """Look at each worker of this process when it is ready."""
    worker_ready.connect(_look, weak=False, dispatch_uid="celery_graceful.without_graceful")


def _look(sender: Any = None, **_: Any) -> None:
    app = getattr(sender, "app", None)
    if app is None or hasattr(app, "_plain_create_task_cls"):
        return
    found = sorted(name for name, task in app.tasks.items() if isinstance(task, Resumable))
    if found:
        logger.warning(
            "This worker is not graceful, as Graceful(app) was not called for %r: a stop does not "
            "interrupt %s, nor does anybody rescue them. Call it where the app is made",
            app,
            shortened(found, NAMED),
        )
