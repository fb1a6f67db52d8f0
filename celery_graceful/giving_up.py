"""What others are told of tasks that the hard deadline took away."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from celery_graceful.request import GracefulRequest
from celery_graceful.requeue import bounded_connection
from celery_graceful.resume import count_given_up
from celery_graceful.task import record

__all__ = ["count_interruptions", "tell_backend", "tell_listeners"]


def tell_backend(requests: Sequence[GracefulRequest], reason: str) -> None:
    """Store their state and send ``task_interrupted``, in the main process."""
    for request in requests:
        record(request.task, request.context, reason, given_up=True)


def tell_listeners(worker: Any, requests: Sequence[GracefulRequest], timeout: float) -> None:
    """Send their events, over a connection of its own: the loop may be stuck.

    Args:
        worker: Celery's ``WorkController``.
        requests: The deliveries.
        timeout: Seconds that the broker may take to answer.
    """
    wanted = [request for request in requests if request.wants_events]
    if wanted:
        with bounded_connection(worker.app, timeout) as connection:
            dispatcher = worker.app.events.Dispatcher(connection, hostname=worker.hostname)
            for request in wanted:
                dispatcher.send("task-interrupted", uuid=request.id)


def count_interruptions(requests: Sequence[GracefulRequest]) -> None:
    """Count them in the store, for ``max_interruptions``."""
    for request in requests:
        began = request.started_at or time.monotonic()
        count_given_up(request.task, request.context, began)
