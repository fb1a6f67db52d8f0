"""Where a delivery stands."""

from __future__ import annotations

import enum

__all__ = ["LEFT", "OPEN", "UNBEGUN", "Stage"]


class Stage(enum.Enum):
    """Where a delivery stands. Only the first three can change."""

    __hash__ = object.__hash__  # there is one of each; that of enums is made of their names

    RECEIVED = "received"
    HANDED_OVER = "handed over"
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    RELEASED = "released"
    GIVEN_UP = "given up"
    LOST = "lost"


#: Stages of a delivery that has no outcome yet.
OPEN = (Stage.RECEIVED, Stage.HANDED_OVER, Stage.RUNNING)

#: Of one that no pool has begun with.
UNBEGUN = (Stage.RECEIVED, Stage.HANDED_OVER)

#: Of one that is not ours any more.
LEFT = (Stage.RELEASED, Stage.GIVEN_UP, Stage.LOST)
