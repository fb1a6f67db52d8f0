"""What a worker tells listeners (Flower, ``celery events``) from threads of its own.

Over a connection of their own, as Celery's is the loop's. Only where events are on; may be lost.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.messages.bounded_connections import bounded_connection, send_events
from celery_graceful.store.store import fork_gate
from celery_graceful.system.describe import describe
from celery_graceful.system.log_thread import log

__all__ = ["are_on", "send"]

logger = get_logger(__name__)

#: Seconds that the broker gets.
TIMEOUT = 1.0


def are_on(worker: Any) -> bool:
    """Whether somebody has asked a worker for events (``-E``, ``worker_send_task_events``)."""
    eventer = getattr(getattr(worker, "consumer", None), "event_dispatcher", None)
    return bool(eventer is not None and eventer.enabled)


def send(worker: Any, events: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Send events, each with its type and its fields, if they are on. Raises nothing.

    Not from the loop: it waits for the broker.
    """
    if not are_on(worker):
        return
    try:
        broker = worker.app.connection_for_write()
        with fork_gate, bounded_connection(broker, TIMEOUT) as connection:
            send_events(connection, worker.app, worker.hostname, events)
    except Exception as exc:
        log(logger, logging.WARNING, "Events were not sent: %s", describe(exc))
