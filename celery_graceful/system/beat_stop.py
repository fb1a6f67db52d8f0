"""Beat ends when it is told to, and with the worker that it is part of.

Celery's handler of SIGTERM and SIGINT raises ``SystemExit`` wherever beat is just then. Libraries
that it is in the middle of, redis-py or Sentry's, may take that for an error of their own, and
beat would go on for ever. And the process of ``celery worker --beat`` would outlive a worker that
was killed, and send what is due beside the beat of the next one.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import wraps
from typing import Any

from celery_graceful.system import native
from celery_graceful.system.orphans import end_with_parent

__all__ = ["ends_when_told", "ends_with_worker"]


def ends_when_told(service: Any) -> None:
    """See to it that a beat of its own ends after its next tick at the latest.

    Args:
        service: Celery's ``beat.Service``, which is about to start.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    if not (native.in_main_thread() and all(map(callable, handlers.values()))):
        return  # a thread of a worker, which ends it
    told: list[int] = []
    for number, handler in handlers.items():
        signal.signal(number, _noting(handler, told))
    scheduler = service.scheduler
    scheduler.tick = _ending(scheduler.tick, told)


def ends_with_worker() -> None:
    """See to it that the process of ``--beat``, which this is, ends when its worker is killed."""
    end_with_parent(signal.SIGTERM)


def _noting(handler: Any, told: list[int]) -> Callable[..., Any]:
    def on_signal(number: int, frame: Any) -> None:
        told.append(number)
        handler(number, frame)

    return on_signal


def _ending(tick: Callable[..., Any], told: list[int]) -> Callable[..., Any]:
    @wraps(tick)
    def ticking(*args: Any, **kwargs: Any) -> Any:
        seconds = tick(*args, **kwargs)
        if told:
            raise SystemExit
        return seconds

    return ticking
