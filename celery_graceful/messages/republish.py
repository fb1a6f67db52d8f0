"""Sends a message again, with everything it carried, and knows whether the broker has taken it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from amqp.exceptions import MessageNacked

from celery_graceful.messages.redelivered_flag import has_begun
from celery_graceful.system.loaded import is_instance

__all__ = ["COUNT", "OF_ONE_DELIVERY", "Refused", "Sender", "without"]

#: Header in which a quorum queue counts what was given back to it, a drain no less than a crash.
COUNT = "x-delivery-count"


class Refused(Exception):
    """The broker is there, and has not taken a message."""


class Sender:
    """Sends over one connection.

    Args:
        connection: kombu's; on RabbitMQ one that confirms.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._returned: list[Exception] = []
        self._use(connection.default_channel)

    def _use(self, channel: Any) -> None:
        self._channel = channel
        self._routed = is_instance(channel, "kombu.transport.pyamqp", "Channel")
        if self._routed:
            channel.events["basic_return"].add(self._on_return)

    def _on_return(self, exc: Exception, *_: Any) -> None:
        self._returned.append(exc)

    def send(
        self,
        message: Any,
        more_headers: dict[str, Any] | None = None,
        queue: str | None = None,
    ) -> None:
        """Send a message again.

        Args:
            message: As kombu delivered it.
            more_headers: Added to those it has.
            queue: Where to, alone. Without, the way that it came, which may lead to other
                queues as well.

        Raises:
            Refused: On RabbitMQ: no queue has it.
            Exception: What the broker's client raised.
        """
        info = message.delivery_info or {}
        properties = without(message.properties, _SET_BY_PUBLISH)
        if self._routed and has_begun(more_headers or {}):
            properties.pop("expiration", None)
        elif "expiration" in properties:  # milliseconds there, cut off; seconds here
            properties["expiration"] = (int(properties["expiration"]) + 0.5) / 1000
        # kombu has decompressed the body already.
        headers = without(message.headers, OF_ONE_DELIVERY)
        headers.update(more_headers or {})
        self._returned.clear()
        try:
            self.connection.Producer(self._channel).publish(
                message.body,
                exchange=(info.get("exchange") or "") if queue is None else "",
                routing_key=info.get("routing_key") if queue is None else queue,
                headers=headers,
                content_type=message.content_type,
                content_encoding=message.content_encoding,
                mandatory=self._routed,
                retry=False,
                **properties,
            )
        except MessageNacked as exc:
            raise Refused("the broker has refused it") from exc
        except self.connection.channel_errors as exc:
            if not self._routed:
                raise
            self._use(self.connection.channel())  # the error has closed it
            raise Refused(str(exc)) from exc
        if self._returned:  # which comes before the confirmation
            raise Refused(f"no queue takes it: {self._returned[0]}")


#: Headers that belong to one delivery, or no longer hold.
OF_ONE_DELIVERY = ("redelivered", "compression", COUNT, "x-acquired-count")

#: Properties that a publish sets by itself, or that belong to one delivery. RabbitMQ refuses a
#: ``user_id`` that is not ours.
_SET_BY_PUBLISH = (
    "application_headers",
    "body_encoding",
    "content_encoding",
    "content_type",
    "delivery_info",
    "delivery_tag",
    "user_id",
)


def without(mapping: dict[str, Any] | None, names: Iterable[str]) -> dict[str, Any]:
    """A copy without these keys."""
    return {key: value for key, value in (mapping or {}).items() if key not in names}
