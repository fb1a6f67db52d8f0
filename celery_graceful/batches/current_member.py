"""As what the running task is in a batch: a member, or a callback."""

from __future__ import annotations

from collections.abc import Callable

from celery import current_task

from celery_graceful.batches.marks import Mark, callback_of, marks_of, member_of
from celery_graceful.batches.search_state import callback_member

__all__ = ["adds_as", "here"]


def here() -> Mark | None:
    """Which batch the running task is in, and as what: a member's id, or ``callback:<name>``."""
    marks = marks_of(current_task.request) if current_task else None
    callback = callback_of(marks)
    if callback is not None:
        return Mark(callback.batch, callback_member(callback.name))
    return member_of(marks)


def adds_as(batch: str, parent_of: Callable[[str], str | None]) -> str | None:
    """As what the running task can add to a batch; ``None`` if it is not in it.

    Args:
        batch: Id of the batch. That which the task is in may be inside of it, at any depth.
        parent_of: The batch that one is directly inside of.
    """
    at = here()
    while at is not None and at.batch != batch:
        parent = parent_of(at.batch)
        at = None if parent is None else Mark(parent, at.batch)
    return None if at is None else at.name
