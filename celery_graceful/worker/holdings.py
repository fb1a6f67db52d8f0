"""What a worker says of what it holds, to who asks: what runs, and what the rest waits for."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.stage import Stage

__all__ = ["holdings"]

#: Messages that are named.
MOST = 200


def holdings(ledger: Ledger, consumer: Any, task_id: str | None = None) -> list[dict[str, Any]]:
    """What is held, oldest first.

    Args:
        ledger: Of the worker.
        consumer: Celery's.
        task_id: Only that task.
    """
    held = [r for r in ledger.open_requests() if task_id is None or r.id == task_id]
    return [_told(request, consumer) for request in held[:MOST]]


def _told(request: HeldMessage, consumer: Any) -> dict[str, Any]:
    running = request.stage is Stage.RUNNING
    return {
        "id": request.id,
        "task": request.name,
        "running": running,
        "seconds": round(request.running_for, 1) if running else None,
        "waits_for": "" if running else _waits_for(request, consumer),
    }


def _waits_for(request: HeldMessage, consumer: Any) -> str:
    """``eta``, ``rate limit``, or ``room`` in the pool."""
    if request.stage is Stage.RECEIVED:
        eta = request.eta
        now = datetime.now(timezone.utc if eta and eta.tzinfo else None)
        if eta and eta > now:
            return "eta"
        # What its timer has taken out for a moment is in none.
        if consumer.task_buckets[request.name] is not None:
            return "rate limit"
    return "room"
