"""Pools of connections to Redis, with what others have configured: brokers and result backends."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = [
    "backend_pool",
    "backend_prefix",
    "disconnect",
    "has_celerys_client",
    "kombu_pool",
    "sentinel_pools",
    "take_connection",
    "timeouts",
    "unconnected_channel",
]


def timeouts(timeout: float) -> dict[str, Any]:
    """Transport options by which nothing takes longer than ``timeout`` seconds."""
    return {"socket_timeout": timeout, "socket_connect_timeout": timeout}


class _NoClient:
    """Stands where a kombu channel pings the server when it is made."""

    @staticmethod
    def ping() -> None:
        """Not now."""


@contextmanager
def unconnected_channel(transport: Any) -> Iterator[Any]:
    """A channel of kombu's for Redis that asks the server for nothing."""
    channel = type("Channel", (transport.Channel,), {"client": _NoClient()})(transport)
    try:
        yield channel
    finally:
        channel.close()


def kombu_pool(connection: Any) -> Any:
    """A pool with the parameters of a kombu connection: TLS, Sentinel and all."""
    with unconnected_channel(connection.transport) as channel:
        return channel._get_pool()


def backend_pool(backend: Any, timeout: float) -> Any:
    """A pool with the parameters of a result backend, and ``timeout`` seconds for each answer."""
    params = dict(backend.connparams, socket_timeout=timeout)
    if "socket_connect_timeout" in params:
        params["socket_connect_timeout"] = timeout
    return backend._get_pool(**params)


def has_celerys_client(backend: Any) -> bool:
    """Whether a result backend in Redis reaches it in Celery's way, by its parameters.

    A subclass may make its client by itself, of a cluster, or of what a discovery says: then they
    may lead elsewhere.
    """
    from celery.backends.redis import RedisBackend, SentinelBackend

    ways = ("client", "_create_client", "_get_client", "_get_pool")
    kinds = [kind for kind in (SentinelBackend, RedisBackend) if isinstance(backend, kind)]
    return bool(kinds) and all(
        inspect.getattr_static(type(backend), way) is inspect.getattr_static(kinds[0], way)
        for way in ways
    )


def disconnect(pool: Any) -> None:
    """Close the connections of a pool, and those to the Sentinels that it has asked."""
    for one in (pool, *sentinel_pools(pool)):
        one.disconnect()


def sentinel_pools(pool: Any) -> list[Any]:
    """Those over which a pool asks Sentinels who the master is; none where there are no such."""
    manager = getattr(pool, "sentinel_manager", None)
    return [one.connection_pool for one in getattr(manager, "sentinels", ())]


def backend_prefix(options: dict[str, Any]) -> str:
    """The key prefix, joined as Celery does for results."""
    prefix = str(options.get("global_keyprefix") or "")
    return prefix + "_" if prefix and prefix[-1] not in ":_-." else prefix


def take_connection(pool: Any) -> Any:
    """A connection of a pool."""
    from redis import VERSION

    # Of a command, which nobody looks at; later versions want none.
    return pool.get_connection(*(("_",) if VERSION[:2] < (5, 3) else ()))
