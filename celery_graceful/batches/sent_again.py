"""Members that were sent again are not sent once more, by another command or another worker.

Who sends one again says so first (``BatchLedger.send_again``), which keeps all others from it.
After a while it may be lost once more, and is looked for. Its end is noted beside it: who has found
out before what has failed, or was missing, means that which is over by now.
"""

from __future__ import annotations

from typing import NamedTuple

from celery_graceful.batches.looks import STILL, patience
from celery_graceful.settings import Settings

__all__ = ["AT_ONCE", "LATELY", "Lately", "lately"]

#: Why one is left alone.
LATELY = "sent again a moment ago"

#: Members that are said to be sent again before they are: until the last has gone takes a moment.
AT_ONCE = 50

#: Seconds in which commands that are given at once have all begun, also on a busy machine: what has
#: failed again by then is not sent once more.
TOGETHER = 5.0


class Lately(NamedTuple):
    """What is left alone; all in seconds of the server's clock.

    Attributes:
        since: If it was sent again since then, and has not ended.
        ended_since: If it was sent again since then, although it has ended.
        seen: If it has ended since then: that it has failed was known before.
    """

    since: float
    ended_since: float
    seen: float

    @classmethod
    def before(cls, now: float, seconds: float, seen: float | None = None) -> Lately:
        """For so many seconds before now."""
        return cls(now - seconds, now - min(seconds, TOGETHER), now if seen is None else seen)


def lately(settings: Settings) -> float:
    """Seconds for which one that was sent again is left alone, wherever it is.

    Less than between two repairs by workers (``caretaker.py``), which have looked for it since.
    """
    return STILL * patience(settings)
