"""Agents of monitoring that an app may run under: what they have to know, and have to be given.

They send at intervals, from a thread of their own, and the rest in an exit handler, which a
process that leaves by ``os._exit`` never comes to. Children of plain Celery sleep for a second
before they do, in which most of them come by once more; ours leave at once where nobody else's
threads run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from celery_graceful.system import native
from celery_graceful.system.loaded import loaded

__all__ = ["PATIENCE", "flush", "no_errors", "others_may_send"]

#: Seconds for all of them: what billiard's children sleep.
PATIENCE = 1.0

#: Whose threads have nothing to send any more: ours, and those of agents that were flushed.
_DONE = ("celery_graceful", "sentry_sdk", "opentelemetry", "ddtrace")

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


def others_may_send() -> bool:
    """Whether this process has threads that may have something to send, or to write, yet.

    Clients of metrics, queues of log records: nobody can have them do it now.
    """
    return any(
        _package(thread) not in _DONE
        for thread in threading.enumerate()
        if thread is not threading.current_thread()
    )


def _package(thread: threading.Thread) -> str:
    made_by: Any = type(thread)
    if made_by is threading.Thread:
        made_by = getattr(thread, "_target", None)  # Python's own: gone when it has ended
    return str(getattr(made_by, "__module__", "")).partition(".")[0]


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
