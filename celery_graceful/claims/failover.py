"""After a failover: end the connections of the worker's loop to a master that is none any more.

The loop waits without a time-out, for a message or until an event is sent. A master that hangs, or
was cut off, closes nothing, and the loop would wait for its answer for ever.
"""

from __future__ import annotations

import os
from socket import SHUT_RDWR
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.system import native

__all__ = ["hang_up"]

logger = get_logger(__name__)


def hang_up(connection: Any, peer: Any) -> None:
    """End what leads to ``peer``; from any thread. Who waits for it learns that it has ended.

    Args:
        connection: kombu's. One that is none of Redis is left alone.
        peer: Address of the server, as its sockets have it.
    """
    from kombu.transport.redis import Transport  # it needs redis, which RabbitMQ does not

    if not isinstance(connection.transport, Transport):
        return
    for channel in list(connection.transport.channels or ()):
        for pool in (channel._pool, channel._async_pool):
            if pool is not None:
                for one in [*pool._in_use_connections, *pool._available_connections]:
                    if one._sock is not None:
                        _end(one._sock, peer)


def _end(sock: Any, peer: Any) -> None:
    try:
        # Not that of a green pool: it belongs to the hub of another thread.
        with native.original("socket", "socket")(fileno=os.dup(sock.fileno())) as same:
            if same.getpeername() == peer:
                same.shutdown(SHUT_RDWR)
    except OSError as exc:  # it has ended by itself
        logger.debug("Could not hang up: %r", exc)
