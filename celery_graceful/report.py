"""What a person reads about a drain."""

from __future__ import annotations

import time
from collections.abc import Sequence

from celery.utils.log import get_logger

from celery_graceful.phase import Board
from celery_graceful.request import GracefulRequest, Ledger, Stage

__all__ = ["describe", "report"]

logger = get_logger(__name__)

#: More tasks than this are counted, not named.
NAMED = 10


def describe(requests: Sequence[GracefulRequest]) -> str:
    """``name[id] for 3.1 s, ...``, the longest running first."""
    if not requests:
        return "nothing"
    by_age = sorted(requests, key=lambda r: -r.running_for)
    text = ", ".join(f"{r.name}[{r.id}] for {r.running_for:.1f} s" for r in by_age[:NAMED])
    return text if len(requests) <= NAMED else f"{text} and {len(requests) - NAMED} more"


def report(ledger: Ledger, board: Board) -> None:
    """Log one line: what became of all that the worker held."""
    now = time.monotonic()
    counts = ledger.counts
    logger.warning(
        "Stopped: %d finished, %d interrupted, %d given up, %d released; took %.1f s, %.1f s "
        "of grace left",
        counts[Stage.FINISHED],
        counts[Stage.INTERRUPTED],
        counts[Stage.GIVEN_UP],
        counts[Stage.RELEASED],
        now - board.requested_at,
        board.grace_ends_at - now,
    )
