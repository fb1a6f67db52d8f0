"""Agents of monitoring that an app may run under: what they have to know, and have to be given.

They send at intervals, from a thread of their own, and the rest in an exit handler, which a
process that leaves by ``os._exit`` never comes to. Children of plain Celery sleep for a second
before they do, in which most agents come by once more; ours leave at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from celery_graceful.system import native
from celery_graceful.system.loaded import loaded

__all__ = ["flush", "no_errors"]

#: Seconds for all of them: what billiard's children sleep.
PATIENCE = 1.0

#: Where OpenTelemetry's API hands out what the app has set.
_PROVIDERS = (
    ("opentelemetry.trace", "get_tracer_provider"),
    ("opentelemetry.metrics", "get_meter_provider"),
    ("opentelemetry._logs", "get_logger_provider"),
)


def flush(seconds: float) -> None:
    """Have agents of which this process has imported one send what they have.

    Those of New Relic, Elastic and Sentry see to it themselves, in the children of a pool.

    Args:
        seconds: It may take, of ``PATIENCE`` at most: a server that is away is no reason to stay.
    """
    native.bounded_all(list(_flushes()), min(seconds, PATIENCE))


def _flushes() -> Iterator[Callable[[], Any]]:
    datadog = loaded("ddtrace.trace", "tracer")
    if datadog is not None:
        yield datadog.flush
    for module, name in _PROVIDERS:
        provider = loaded(module, name)
        if provider is not None:
            yield partial(_flush_opentelemetry, provider)


def _flush_opentelemetry(provider: Callable[[], Any]) -> None:
    # What stands in for a provider where none is set has nothing to send.
    send = getattr(provider(), "force_flush", None)
    if send is not None:
        send()


def no_errors(*classes: type[BaseException]) -> None:
    """Have New Relic take these for no errors: it asks for names, and no class they derive from.

    Others take what is a Celery ``Ignore`` for what it is. Before its application is activated,
    which takes the settings as they are then.

    Args:
        classes: Of exceptions.
    """
    settings = loaded("newrelic.core.config", "global_settings")
    collector = getattr(settings and settings(), "error_collector", None)
    ignored = getattr(collector, "ignore_classes", None)
    if isinstance(ignored, list):
        for cls in classes:
            name = f"{cls.__module__}:{cls.__qualname__}"
            if name not in ignored:
                ignored.append(name)
