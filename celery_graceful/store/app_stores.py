"""Which stores an app has: its own one, and those where its workers are known."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from kombu.connection import Connection

from celery_graceful.store.connections import backend_pool, backend_prefix, kombu_pool, timeouts
from celery_graceful.store.store import SEPARATOR, Store
from celery_graceful.system.loaded import loaded
from celery_graceful.system.per_app import PerApp
from celery_graceful.timeline import worker_state

if TYPE_CHECKING:
    from celery_graceful.settings import Settings

__all__ = [
    "broker_places",
    "broker_store",
    "broker_stores",
    "disconnect",
    "find_store",
    "find_workers_store",
    "is_kombus_redis",
    "results_store",
    "settings_of",
]

#: By the place of a broker's URL.
_found: PerApp[dict[int, Store | None]] = PerApp()
_found_workers: PerApp[dict[int, Store | None]] = PerApp()
#: One for all that ask it, so that an outage is one in the log.
_brokers: PerApp[dict[int, Store | None]] = PerApp()
_settings: PerApp[Settings] = PerApp()


def settings_of(app: Any) -> Settings:
    """The settings of an app, read once.

    Raises:
        SettingsError: One of them cannot be used.
    """
    if app not in _settings:
        from celery_graceful.settings import Settings

        _settings[app] = Settings.from_conf(app.conf)
    return _settings[app]


def find_store(app: Any) -> Store | None:
    """The store of an app: ``graceful_store``, else the broker, else the result backend.

    The latter two only where they are Redis. Of several brokers, in a worker, that which its
    consumer is connected to. Does not connect.

    Raises:
        SettingsError: A ``graceful_*`` setting cannot be used.
    """
    place, found = _here(), _found.setdefault(app, {})
    if place not in found:
        found[place] = _find(app, settings_of(app), place)
    return found[place]


def find_workers_store(app: Any, place: int | None = None) -> Store | None:
    """Where workers are known: the broker if it is Redis, else the store.

    Claims move together with the queues, so what is about claims lives beside them.

    Args:
        app: The Celery app.
        place: Of the broker among several. Without: as ``find_store``.

    Raises:
        SettingsError: A ``graceful_*`` setting cannot be used.
    """
    place, found = _here() if place is None else place, _found_workers.setdefault(app, {})
    if place not in found:
        found[place] = broker_store(app, place) or find_store(app)
    return found[place]


def disconnect(app: Any) -> None:
    """Close the connections of all stores that were found for ``app``."""
    for found in (_found.get(app), _found_workers.get(app), _brokers.get(app)):
        for store in (found or {}).values():
            if store is not None:
                store.disconnect()


def _here() -> int:
    return 0 if worker_state.board.value is None else worker_state.board.value.place


def _find(app: Any, settings: Settings, place: int) -> Store | None:
    if settings.store is not None:
        url, options = settings.store, dict(settings.store_options)
        ssl = options.pop("ssl", None)
        return Store(
            "graceful_store",
            lambda timeout: kombu_pool(
                Connection(url, ssl=ssl, transport_options={**options, **timeouts(timeout)})
            ),
            options.get("global_keyprefix") or "",
        )
    broker = broker_store(app, place)
    if broker is None and app.conf.broker_write_url != app.conf.broker_read_url:
        broker = _store_of(app.connection_for_write)
    if broker is not None:
        return broker
    return results_store(app)


def results_store(app: Any) -> Store | None:
    """The Redis that Celery keeps results in; ``None`` if it is something else."""
    from celery.backends.redis import RedisBackend

    backend = app.backend
    if isinstance(backend, RedisBackend):
        return Store(
            "the result backend",
            lambda timeout: backend_pool(backend, timeout),
            backend_prefix(app.conf.get("result_backend_transport_options") or {}),
        )
    return None


def broker_places(app: Any) -> range:
    """Of the servers that a worker of an app may consume from."""
    return range(len(app.connection_for_read().alt) or 1)


def broker_stores(app: Any) -> list[Store]:
    """Those that workers of an app may consume from; none where they are something else."""
    return [store for place in broker_places(app) if (store := broker_store(app, place))]


def broker_store(app: Any, place: int = 0) -> Store | None:
    """The Redis that workers of an app consume from; ``None`` if it is something else.

    Args:
        app: The Celery app.
        place: Of its URL, where the broker has several.
    """
    found = _brokers.setdefault(app, {})
    if place not in found:
        urls = app.connection_for_read().alt
        # The first one with all of them: those of Sentinels lead to one server.
        url = urls[place] if 0 < place < len(urls) else None
        found[place] = _store_of(partial(app.connection_for_read, url))
    return found[place]


def _store_of(connect: Callable[..., Any]) -> Store | None:
    broker = connect()
    if not is_kombus_redis(broker.transport):
        return None
    return Store(
        "the broker",
        lambda timeout: kombu_pool(connect(transport_options=timeouts(timeout))),
        broker.transport_options.get("global_keyprefix") or "",
        broker.transport_options.get("sep", SEPARATOR),
    )


def is_kombus_redis(transport: Any) -> bool:
    """Whether it is kombu's transport for Redis, or derived from it: whoever has one loaded it."""
    kombus = loaded("kombu.transport.redis", "Transport")
    return kombus is not None and isinstance(transport, kombus)
