"""Queues that RabbitMQ deletes with their last consumer, with its connection, or when told to."""

from __future__ import annotations

from typing import Any

from amqp.exceptions import ConsumerCancelled
from celery.utils.log import get_logger

from celery_graceful.messages.amqp import is_amqp

__all__ = ["say_what_ends", "tag_of_deleted"]

logger = get_logger(__name__)


def say_what_ends(consumer: Any) -> None:
    """Say once which of a worker's queues end with it: what goes back there at a stop does so, too.

    Not of a fanout exchange's: a copy of what was sent to each worker ends with it anyway.
    """
    if consumer.restart_count > 0 or not is_amqp(consumer.connection):
        return
    for queue in consumer.task_consumer.queues:
        how = "exclusive" if queue.exclusive else "auto_delete" if queue.auto_delete else None
        if how is not None and getattr(queue.exchange, "type", None) != "fanout":
            logger.warning(
                "Queue %s is %s: RabbitMQ deletes it when its last worker stops, with all that "
                "waits there, is interrupted or is given up. Mend: %s=False, or nothing is sent "
                "there that has to outlive a worker",
                queue.name,
                how,
                how,
            )


def tag_of_deleted(error: BaseException | None) -> str | None:
    """The consumer tag that RabbitMQ has cancelled, since its queue was deleted, if that is why.

    https://www.rabbitmq.com/docs/consumer-cancel. Also where the queue's only node is down: what
    it keeps is delivered again when it is back.
    """
    return str(error.reply_text) if isinstance(error, ConsumerCancelled) else None
