"""Connections of the app that use our transport where kombu would use its own for Redis."""

from __future__ import annotations

from typing import Any

from celery.app.amqp import AMQP
from kombu.connection import Connection as PlainConnection
from kombu.utils.objects import cached_property

__all__ = ["Connection", "GracefulAMQP"]


class Connection(PlainConnection):
    """A connection that claims what it takes from Redis."""

    def get_transport_cls(self) -> Any:
        """Our transport in the place of kombu's for Redis, every other one as it is."""
        transport = super().get_transport_cls()
        if transport.__module__ == "kombu.transport.redis":
            from celery_graceful import transport as ours

            return getattr(ours, transport.__name__, transport)
        return transport


class GracefulAMQP(AMQP):
    """``app.amqp``, unless ``graceful_reliable_fetch`` is off."""

    @cached_property
    def Connection(self) -> Any:
        """Class of the app's connections."""
        if self.app.conf.get("graceful_reliable_fetch", True):
            return Connection
        return PlainConnection
