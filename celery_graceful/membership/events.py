"""What a worker tells listeners (Flower, ``celery events``) from threads of its own.

Over a connection of their own, as Celery's is the loop's. Only where events are on; may be lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.messages.bounded_connections import bounded_connection, send_events
from celery_graceful.store.store import fork_gate
from celery_graceful.system import native
from celery_graceful.system.describe import describe
from celery_graceful.system.log_thread import log

__all__ = ["are_on", "send", "soon"]

logger = get_logger(__name__)

#: Seconds that the broker gets.
TIMEOUT = 1.0

#: Seconds that an event gets to be there before what happens next.
AHEAD = 0.25

#: Its type, and its fields.
Event = tuple[str, dict[str, Any]]


def are_on(worker: Any, group: str = "worker") -> bool:
    """Whether a worker sends such events: of tasks, where it was asked to (``-E``)."""
    eventer = getattr(getattr(worker, "consumer", None), "event_dispatcher", None)
    if eventer is None or not eventer.enabled:
        return False
    return not eventer.groups or group in eventer.groups


def send(worker: Any, events: Iterable[Event]) -> None:
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


@contextmanager
def soon(worker: Any, group: str) -> Iterator[Callable[[Iterable[Event]], None]]:
    """Send events of a group, all at once, if they are on; who tells them waits for a moment only.

    A thread connects to the broker from the beginning, while it is not known yet what there is to
    tell: so that it is there, mostly, before what happens next.

    Args:
        worker: Who sends them.
        group: The first word of their types.
    """
    told: list[Event] = []
    if not are_on(worker, group):
        yield told.extend
        return
    bell = native.Doorbell()

    def run() -> None:
        try:
            broker = worker.app.connection_for_write()
            with ExitStack() as stack:
                with fork_gate:
                    connection = stack.enter_context(bounded_connection(broker, TIMEOUT))
                bell.wait(None)
                if told:
                    with fork_gate:
                        send_events(connection, worker.app, worker.hostname, told)
        except Exception as exc:
            log(logger, logging.WARNING, "Events were not sent: %s", describe(exc))

    def tell(events: Iterable[Event]) -> None:
        told.extend(events)
        if told:
            bell.ring()
            thread.wait(AHEAD)

    thread = native.start_thread(run, "graceful-events")
    try:
        yield tell
    finally:
        bell.ring()
