"""Messages that are sent again: of those the broker has no copy, or is to have one at the tail."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.stage import Stage
from celery_graceful.messages import brokers_without_acks
from celery_graceful.messages.bounded_connections import SpareConnections, use
from celery_graceful.messages.comebacks import SENT_AGAIN
from celery_graceful.messages.redelivered_flag import BEGUN
from celery_graceful.messages.republish import Refused, Sender
from celery_graceful.system import native
from celery_graceful.task.base import GracefulTask

__all__ = ["Resender"]


class Resender:
    """Sends messages again, for one worker.

    Args:
        app: The Celery app.
        queue_of: Which queue a message came from, by its consumer tag.
    """

    def __init__(self, app: Any, queue_of: Callable[[Any], str | None]) -> None:
        self.app = app
        self._queue_of = queue_of
        self._lock = native.Lock()
        self._under_way: list[HeldMessage] = []

    @property
    def under_way(self) -> list[HeldMessage]:
        """Whose messages some thread is sending right now."""
        return list(self._under_way)

    def send(
        self,
        requests: Iterable[HeldMessage],
        broker: Any,
        timeout: float,
        more_headers: dict[str, Any] | None = None,
        spare_connections: SpareConnections | None = None,
    ) -> list[tuple[HeldMessage, Exception]]:
        """Send messages to the queues that they came from.

        Args:
            requests: Whose messages.
            broker: A connection to the broker that they came from, to open one like it.
            timeout: Seconds that it may take to answer.
            more_headers: What the copies say beside what the messages said.
            spare_connections: A connection that is open, to send with.

        Returns:
            Those that were not sent, each with the reason.
        """
        waiting = deque(requests)
        begun = list(waiting)
        with self._lock:
            self._under_way += begun
        refused: list[tuple[HeldMessage, Exception]] = []

        def send(connection: Any) -> None:
            sender = Sender(connection)
            while waiting:
                message = waiting[0].message
                tag = (message.delivery_info or {}).get("consumer_tag")
                queue = self._queue_of(tag) or brokers_without_acks.queue_of(self.app, message)
                try:
                    sender.send(message, _headers_of(waiting[0], more_headers), queue)
                except Refused as exc:
                    refused.append((waiting[0], exc))
                waiting.popleft()

        try:
            use(spare_connections, broker, send, timeout)
        except Exception as exc:
            refused += [(request, exc) for request in waiting]
        finally:
            with self._lock:
                self._under_way = [r for r in self._under_way if r not in begun]
        return refused


def _headers_of(request: HeldMessage, more: dict[str, Any] | None) -> dict[str, Any]:
    """What the copy of a message says beside what it said."""
    headers = dict(more or {})
    began = request.started_at is not None or request.stage is Stage.GIVEN_UP
    if began and isinstance(request.task, GracefulTask):  # there may be something to go on from
        headers[SENT_AGAIN] = True
    if request.has_begun:
        headers["redelivered"] = BEGUN
    return headers
