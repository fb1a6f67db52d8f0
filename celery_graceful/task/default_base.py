"""``graceful_default_task``: tasks that name no base are graceful, if they are made in time."""

from __future__ import annotations

from typing import Any

from celery.utils.imports import symbol_by_name
from celery.utils.log import get_logger

from celery_graceful.system.describe import shortened
from celery_graceful.task.base import GracefulTask
from celery_graceful.task.composed_base import base_of, bases

__all__ = ["make_default", "say_who_is_plain", "who_is_plain"]

logger = get_logger(__name__)

#: Tasks that one line names.
NAMED = 10


def make_default(app: Any) -> None:
    """Make the base of an app's tasks a graceful one; before its first task is made."""
    composed = bases(GracefulTask, symbol_by_name(app.task_cls))
    if len(composed) == 1:
        (app.task_cls,) = composed
    else:
        app.task_cls = type("GracefulTask", composed, {"abstract": True})


def who_is_plain(app: Any) -> list[str]:
    """The tasks that were made, or whose base was, before the setting could act."""
    base = base_of(app)
    if not app.conf.get("graceful_default_task") or issubclass(base, GracefulTask):
        return []
    return sorted(
        name
        for name, task in app.tasks.items()
        if base in type(task).__bases__
        and not isinstance(task, GracefulTask)
        and not name.startswith("celery.")
    )


def say_who_is_plain(app: Any) -> None:
    """Name the tasks for which the setting came too late."""
    base, plain = base_of(app), who_is_plain(app)
    if plain:
        logger.warning(
            "graceful_default_task came too late for %s: app.Task is %s.%s, made or set before it. "
            "Set it, and make the app graceful, before the first task is defined, and give a base "
            "of your own as Celery(task_cls=...); or give these base=GracefulTask",
            shortened(plain, NAMED),
            base.__module__,
            base.__qualname__,
        )
