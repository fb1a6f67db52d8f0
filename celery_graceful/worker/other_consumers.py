"""What a worker consumes besides its tasks: the consumer steps of an app.

A ``bootsteps.ConsumerStep`` is Celery's way to read queues of one's own in a worker. It stops
when the worker's tasks stop; what its handlers have, and have not answered, is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from weakref import WeakSet

from celery import bootsteps
from celery.utils.log import get_logger
from kombu.transport import virtual

from celery_graceful.worker.loop import consume_again

__all__ = ["OtherConsumers"]

logger = get_logger(__name__)


class OtherConsumers:
    """The consumer steps of one worker, but for Celery's own."""

    def __init__(self) -> None:
        self._steps: list[Any] = []
        self._quiet = False
        # Whoever drops a message without an answer is done with it, too: it goes back when the
        # channel is closed.
        self._messages: WeakSet[Any] = WeakSet()

    def adopt(self, consumer: Any) -> None:
        """Look after the steps of Celery's ``consumer``. Before any of them starts."""
        from celery.worker.consumer.gossip import Gossip

        for step in consumer.steps:
            if isinstance(step, bootsteps.ConsumerStep) and not isinstance(step, Gossip):
                self._steps.append(step)
                step.get_consumers = partial(self._get_consumers, step.get_consumers)

    def _get_consumers(self, get_consumers: Callable[[Any], Any], channel: Any) -> list[Any]:
        if self._quiet:  # it connects again, while the worker stops
            return []
        consumers = list(get_consumers(channel) or ())
        for consumer in consumers:
            if not consumer.no_ack:
                self._note_messages(consumer)
        return consumers

    def _note_messages(self, consumer: Any) -> None:
        note, on_message = self._messages.add, consumer.on_message
        if on_message is None:
            consumer.callbacks = [lambda body, message: note(message), *consumer.callbacks]
        else:

            def noting(message: Any) -> Any:
                note(message)
                return on_message(message)

            consumer.on_message = noting

    def _consumers(self) -> Iterator[Any]:
        for step in self._steps:
            yield from step.consumers or ()

    @property
    def held(self) -> bool:
        """Whether a handler has a message that it has not answered."""
        return any(not message.acknowledged for message in list(self._messages))

    def stop_fetching(self) -> None:
        """Cancel them without waiting for the broker's answer; in the loop."""
        self._quiet = True
        for consumer in self._consumers():
            try:
                _cancel(consumer)
            except Exception as exc:  # the connection is gone
                logger.debug("Could not cancel %r: %r", consumer, exc)

    def fetch_again(self) -> None:
        """Consume again, without waiting for the broker's answer; in the loop."""
        self._quiet = False
        for consumer in self._consumers():
            vars(consumer).pop("consume", None)
            try:
                consume_again(consumer)
            except Exception as exc:  # the connection is gone
                logger.debug("Could not consume again: %r: %r", consumer, exc)

    def give_back(self) -> None:
        """Give back what handlers still have, where only a closed channel would do so.

        Other brokers do at the end of the connection.
        """
        for channel in {consumer.channel for consumer in self._consumers()}:
            if isinstance(channel, virtual.Channel):
                channel.qos.restore_unacked_once()


def _cancel(consumer: Any) -> None:
    consumer.consume = lambda *_, **__: None
    tags = list(consumer._active_tags.values())
    consumer._active_tags.clear()
    for tag in tags:
        if isinstance(consumer.channel, virtual.Channel):
            consumer.channel.basic_cancel(tag)
        else:
            consumer.channel.basic_cancel(tag, nowait=True)
            if not consumer.no_ack:  # what the broker has sent already goes back
                consumer.channel.callbacks[tag] = partial(_send_back, consumer.channel)


def _send_back(channel: Any, message: Any) -> None:
    channel.basic_reject(message.delivery_tag, requeue=True)
