"""Batches that were cancelled, and members that were revoked: what a worker holds of them.

What has not begun is dropped where it begins, in whatever process; but an ETA may be far away, and
what runs has begun.
"""

from __future__ import annotations

import signal
from collections.abc import Collection
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.request import GracefulRequest
from celery_graceful.deliveries.stage import Stage

__all__ = ["cancel", "drop_revoked"]

logger = get_logger(__name__)


def cancel(ledger: Ledger, pool: Any, batches: Collection[str]) -> int:
    """Revoke what runs of the members of some batches, and drop what waits. In the loop.

    Args:
        ledger: What the worker holds.
        pool: Celery's.
        batches: Their ids.

    Returns:
        How many members that were.
    """
    count = 0
    for request in ledger.open_requests():
        part = request.part
        if part is None or part.is_callback or part.of.batch not in batches:
            continue
        count += 1
        if request.stage is Stage.RUNNING:
            try:
                request.terminate(pool, signal.SIGTERM)
            except NotImplementedError:
                logger.warning(
                    "%s goes on, though its batch was cancelled: its pool ends no plain task",
                    request.humaninfo(),
                )
        elif isinstance(request, GracefulRequest):
            request.drop_cancelled()
    return count


def drop_revoked(ledger: Ledger) -> None:
    """Tasks were revoked: end the members among them that wait. In the loop.

    Celery does so when their turn comes; their batch would wait for that.
    """
    for request in ledger.open_requests():
        if request.part is not None and request.stage is Stage.RECEIVED:
            request.revoked()
