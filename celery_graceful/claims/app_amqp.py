"""Connections of the app that use our transport where kombu would use its own for Redis."""

from __future__ import annotations

from typing import Any

from celery.app.amqp import AMQP
from kombu import connection as kombu_connection
from kombu.utils.collections import HashedSeq
from kombu.utils.objects import cached_property

from celery_graceful.system.loaded import loaded

__all__ = ["Connection", "GracefulAMQP"]


class _OurTransport:
    """Mixed into kombu's connections."""

    #: Of the URL in use, among all that it was given.
    place = 0

    def get_transport_cls(self) -> Any:
        """Kombu's for Redis, and what is derived from it, with claims; others as they are."""
        transport = super().get_transport_cls()  # type: ignore[misc]
        kombus = loaded("kombu.transport.redis", "Transport")
        if kombus is not None and issubclass(transport, kombus):
            from celery_graceful.claims.claiming_transports import with_claims

            return with_claims(transport)
        return transport

    def switch(self: Any, conn_str: str) -> None:
        """The next server: kombu fails over."""
        super().switch(conn_str)  # type: ignore[misc]
        several = not getattr(self.get_transport_cls(), "one_server", False)
        self.place = self.alt.index(conn_str) if several and conn_str in self.alt else 0

    def __eqhash__(self) -> HashedSeq:
        """``kombu.pools`` has one pool for all connections that are alike: ours are for themselves.

        Else those of a plain app that was first would send our messages, and ring for nobody.
        """
        return HashedSeq(_OurTransport, *super().__eqhash__())  # type: ignore[misc]


class Connection(_OurTransport, kombu_connection.Connection):
    """A connection that claims what it takes from Redis."""

    def Pool(self, limit: int | None = None, **kwargs: Any) -> Any:
        """A pool of connections like this one."""
        return ConnectionPool(self, limit, **kwargs)


#: Since kombu 5.7 the connections of a pool have a class of their own.
_POOLED = getattr(kombu_connection, "PooledConnection", None)
_PooledConnection: Any = _POOLED and type("PooledConnection", (_OurTransport, _POOLED), {})


class ConnectionPool(kombu_connection.ConnectionPool):
    """A pool of connections that claim what they take from Redis."""

    def new(self) -> Any:
        """One more."""
        if _PooledConnection is None:
            return super().new()
        return _PooledConnection(self, **dict(self.connection._info(resolve=False)))


class GracefulAMQP(AMQP):
    """``app.amqp``, unless ``graceful_reliable_fetch`` is off."""

    @cached_property
    def Connection(self) -> Any:
        """Class of the app's connections."""
        if self.app.conf.get("graceful_reliable_fetch", True):
            return Connection
        return kombu_connection.Connection
