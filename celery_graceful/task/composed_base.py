"""A graceful task is also what the other tasks of its app are.

Django gives its tasks ``delay_on_commit`` and Flask's run in an application context, both by the
app's ``task_cls``, which Celery leaves out where a task names a base.
"""

from __future__ import annotations

from typing import Any

from celery.utils.imports import symbol_by_name

__all__ = ["base_of", "bases"]


def base_of(app: Any) -> Any:
    """The class that tasks of ``app`` have if they name none: as set, or made already."""
    return vars(app).get("Task") or symbol_by_name(app.task_cls)


def bases(base: Any, own: Any) -> tuple[Any, ...]:
    """What a class has to be derived from to be both.

    Args:
        base: The class that was asked for; it comes first.
        own: That of the app.
    """
    if issubclass(base, own):
        return (base,)
    if issubclass(own, base):
        return (own,)
    try:
        type("both", (base, own), {"abstract": True})
    except TypeError:  # it is composed of the same parts, in an order of its own
        return (base,)
    return base, own
