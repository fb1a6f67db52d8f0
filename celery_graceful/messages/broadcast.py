"""Messages of which each worker has a copy of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery_graceful.messages.amqp import is_amqp

__all__ = ["is_broadcast"]


def is_broadcast(app: Any, delivery_info: Mapping[str, Any] | None) -> bool:
    """Whether each worker that listened has a copy of a message, which goes nowhere else.

    So it is with kombu's ``Broadcast``, and with all queues of a fanout exchange where that is no
    exchange of the broker's own; a queue of RabbitMQ's that stays is shared by its workers.

    Args:
        app: The Celery app.
        delivery_info: Of the message.
    """
    exchange = (delivery_info or {}).get("exchange")
    if not exchange:
        return False
    queues = [queue for queue in list(app.amqp.queues.values()) if queue.exchange is not None]
    fanout = [q for q in queues if q.exchange.name == exchange and q.exchange.type == "fanout"]
    if not fanout:
        return False
    shares_queues = is_amqp(app.connection_for_read())
    return not shares_queues or any(queue.auto_delete for queue in fanout)
