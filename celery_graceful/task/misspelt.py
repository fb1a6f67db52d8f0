"""Options of graceful tasks whose names are almost right: Celery takes any, and does nothing."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from celery.utils.log import get_logger

from celery_graceful.monitors.monitor import Monitor
from celery_graceful.system.describe import shortened
from celery_graceful.task.base import GracefulTask

__all__ = ["Misspelt", "misspelt_options", "say_what_is_misspelt"]

logger = get_logger(__name__)

#: Our options, and what they may be: what is something else is the user's own.
_OPTIONS: dict[str, tuple[type, ...]] = {
    "max_interruptions": (int,),
    "max_run_time": (int, float),
    "checkpoint_interval": (int, float),
    "monitor": (str, Monitor),
}

#: How like it a name has to be: users' own attributes are no typing errors.
_LIKE = 0.85

#: Options that one line names.
NAMED = 10


class Misspelt(NamedTuple):
    """An option that has no effect.

    Attributes:
        task: Name of the task.
        option: As it is written.
        value: Its value.
        meant: The option that it is like.
    """

    task: str
    option: str
    value: Any
    meant: str


def misspelt_options(tasks: Iterable[Any]) -> Iterator[Misspelt]:
    """Attributes of graceful tasks that are unknown, and like one of our options.

    Args:
        tasks: All of an app.
    """
    known = set(dir(GracefulTask))
    graceful = [task for task in tasks if isinstance(task, GracefulTask)]
    for task in sorted(graceful, key=lambda task: str(task.name)):
        for name in sorted(set(dir(type(task))) - known):
            like = difflib.get_close_matches(name, _OPTIONS, 1, _LIKE)
            if not like:
                continue
            value = inspect.getattr_static(type(task), name, None)  # runs nothing of the user's
            if isinstance(value, _OPTIONS[like[0]]) and not isinstance(value, bool):
                yield Misspelt(str(task.name), name, value, like[0])


def say_what_is_misspelt(app: Any) -> None:
    """Name the options that have no effect, in one line."""
    found = [f"{m.task}.{m.option} ({m.meant})" for m in misspelt_options(app.tasks.values())]
    if found:
        logger.warning(
            "These options have no effect, did you mean the ones in parentheses? %s",
            shortened(found, NAMED),
        )
