"""What the deliveries of one worker have in common: its parts, and what it does for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery_graceful.batches.ends import Ends
from celery_graceful.batches.member_part import Part
from celery_graceful.checkpoints.discard import Discard
from celery_graceful.deliveries.duplicates import Duplicates
from celery_graceful.deliveries.late_results import LateResults
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.untold_ends import UntoldEnds

__all__ = ["WorkerServices"]


@dataclass(frozen=True)
class WorkerServices:
    """The worker, as its deliveries see it.

    Attributes:
        ledger: What it holds.
        duplicates: Second deliveries.
        untold: Ends that could be told to nobody.
        late_results: Results that could not be stored yet.
        ends: Tells batches that their members have ended.
        discard: Deletes the checkpoints of what has ended.
        process: Hands a request to the pool.
        can_pass_by: Whether the pool lets pass by what has left.
        is_connected: Whether its loop goes round.
        revoke: Tells a running task that it was revoked, if it can be told.
        on_check_in: Something with a check-in has begun to run.
        on_waiting: A part of a batch has come that is not to begin at once.
    """

    ledger: Ledger
    duplicates: Duplicates
    untold: UntoldEnds
    late_results: LateResults
    ends: Ends
    discard: Discard
    process: Callable[[Any], None]
    can_pass_by: bool
    is_connected: Callable[[], bool]
    revoke: Callable[[Any], bool]
    on_check_in: Callable[[], None]
    on_waiting: Callable[[Part], None]
