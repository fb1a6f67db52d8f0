"""How a task ends that is not to run, or goes on as another one; on its way to the main process.

Both are an ``Ignore``: Celery, Sentry and others see neither a failure nor a retry.
"""

from __future__ import annotations

import enum

from celery.exceptions import Ignore

__all__ = ["LeftOut", "Replaced", "Why"]


class Why(str, enum.Enum):
    """Why a task was left out."""

    CANCELLED = "its batch was cancelled"
    COPY = "another copy of it runs, or has"


class LeftOut(Ignore):
    """A part of a batch that has not been run.

    Args:
        why: What kept it from it.
    """

    def __init__(self, why: Why) -> None:
        super().__init__(why)
        self.why = Why(why)

    def __str__(self) -> str:
        return self.why.value


class Replaced(Ignore):
    """Another task goes on in its place, and is what it was to its batch."""
