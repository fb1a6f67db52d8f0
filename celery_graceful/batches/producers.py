"""Whether who sends a batch still does. One that was killed says nothing, and nothing follows."""

from __future__ import annotations

from collections.abc import Mapping

from celery_graceful.batches.model import State

__all__ = ["FIELDS", "LEFT_AFTER", "heard_of", "is_left"]

#: Seconds after which it is said that a producer is dead which is not heard of. More than what
#: keeps one that lives from saying so: its interpreter is busy, its Redis has another master.
LEFT_AFTER = 30.0

#: Of a batch, to know that.
FIELDS = ("state", "kind", "parent", "sender", "heard")


def heard_of(known: Mapping[str, str | None]) -> float | None:
    """When who sends a batch was last heard of; ``None`` where nobody does.

    Args:
        known: Its fields, ``FIELDS`` among them.
    """
    sends = known.get("state") == State.SENDING and known.get("sender")
    heard = known.get("heard")
    return int(heard) / 1000 if sends and heard else None


def is_left(
    state: str | None, kind: str | None, parent: str | None, heard: float | None, now: float
) -> bool:
    """Whether nobody sends the rest of a batch.

    Of one that is inside of another the producer is the other's, or a task: it goes the way of
    those. Who sends a chord never says that it does not go on, and is not heard of any more; older
    versions have said nothing at all of those.

    Args:
        state: Of the batch.
        kind: Of it.
        parent: What it is inside of.
        heard: As ``heard_of``.
        now: By the same clock.
    """
    if state != State.SENDING or parent:
        return False
    if heard is None:
        return kind == "batch"
    return now - heard >= LEFT_AFTER
