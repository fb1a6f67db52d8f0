"""How often batches that stand still are looked at, and for how long a look takes: in seconds."""

from __future__ import annotations

from celery_graceful.settings import Settings

__all__ = ["PAUSE", "STILL", "between_looks", "patience"]

#: Shares of ``patience``: how long a batch stands still until it is looked at, how long it is not
#: looked at again when nothing was missing, and between two questions whether one stands still.
STILL, PAUSE = 0.4, 0.1


def patience(settings: Settings) -> float:
    """What is left of ``graceful_batch_missing_after`` for what comes before a look."""
    after = settings.batch_missing_after
    return max(after - between_looks(settings), 0.2 * after)


def between_looks(settings: Settings) -> float:
    """Between the two halves of a look: workers say what they hold with each heartbeat."""
    return 1.5 * settings.heartbeat_interval
