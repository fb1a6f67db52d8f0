"""Monitors that were named for tasks with ``Graceful.monitor``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from celery_graceful.monitors.monitor import Monitor

__all__ = ["know", "name", "named"]

#: App -> name of a task -> its monitor. Not kept by the app: see ``named``.
_NAMED: WeakKeyDictionary[Any, dict[str, Monitor]] = WeakKeyDictionary()


def know(app: Any) -> None:
    """``app`` has been made graceful."""
    _NAMED.setdefault(app, {})


def name(app: Any, task: str, monitor: Monitor) -> None:
    """Report the runs of a task of ``app`` to ``monitor``."""
    _NAMED.setdefault(app, {})[task] = monitor


def named(app: Any) -> Mapping[str, Monitor]:
    """Monitors of an app by the names of their tasks.

    A child that was spawned works with a copy of the app, beside the one that its module made:
    what was named for that one holds for the copy.
    """
    found = _NAMED.get(app)
    if found is not None:
        return found
    copied = [names for other, names in _NAMED.items() if other.main == app.main]
    return {task: monitor for names in copied for task, monitor in names.items()}
