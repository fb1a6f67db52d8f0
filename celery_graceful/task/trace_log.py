"""Celery's lines about tasks that are, with celery_graceful, not what they say.

It logs an interrupted task as "ignored", and of one whose claim outlives a lost connection that
it is terminated. These filters say what is the case; and what a lost connection was lost by.
"""

from __future__ import annotations

import logging
from typing import Any

from celery_graceful.exceptions import TaskInterrupted
from celery_graceful.phases import InterruptReason
from celery_graceful.system.describe import describe

__all__ = ["install_filter", "remove_filter"]


_GOES_BACK = "Task %(name)s[%(id)s] interrupted: it goes back to its queue"
_IS_OTHERS = "Task %(name)s[%(id)s] interrupted: it is another worker's by now"
_HAS_ENDED = "Task %(name)s[%(id)s] has stopped: it was revoked"
_SAID = {
    repr(TaskInterrupted(str(InterruptReason.REVOKED))): _HAS_ENDED,
    repr(TaskInterrupted(str(InterruptReason.LEASE_LOST))): _IS_OTHERS,
}

_GOES_ON = "Task %s goes on: its message is claimed, and is acknowledged over the next connection"


class _InterruptedFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        data = getattr(record, "data", None)
        if (
            isinstance(data, dict)
            and data.get("description") == "ignored"
            and str(data.get("exc", "")).startswith(f"{TaskInterrupted.__name__}(")
        ):
            record.msg = _SAID.get(data["exc"], _GOES_BACK)
        return True


class _CancelledFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        # Not earlier: others replace what it imports, as celery-aio-pool does with the tracer.
        from celery.worker.consumer.consumer import (
            TERMINATING_TASK_ON_RESTART_AFTER_A_CONNECTION_LOSS,
        )

        if record.msg == TERMINATING_TASK_ON_RESTART_AFTER_A_CONNECTION_LOSS:
            (request,) = record.args or (None,)
            if getattr(request, "claim", None) is not None:
                record.msg = _GOES_ON
        return True


class _Described:
    """Stands for an error whose ``repr`` may have no message."""

    def __init__(self, exc: BaseException, address: str) -> None:
        self._text = describe(exc, address)

    def __repr__(self) -> str:
        return self._text


class _ErrorFilter(logging.Filter):
    #: Of the broker.
    address = ""

    def filter(self, record: logging.LogRecord) -> bool:
        args = record.args
        if record.levelno >= logging.WARNING and isinstance(args, tuple):
            address = "" if self.address in args else self.address
            record.args = tuple(
                _Described(arg, address) if isinstance(arg, Exception) else arg for arg in args
            )
        return True


def install_filter(broker: str = "") -> None:
    """Put the filters on Celery's loggers, once.

    Args:
        broker: Its URL, without a password.
    """
    _ErrorFilter.address = broker
    for logger, kind in _FILTERS:
        if not _installed(logger, kind):
            logger.addFilter(kind())


def remove_filter() -> None:
    """Take the filters off again."""
    for logger, kind in _FILTERS:
        for each in _installed(logger, kind):
            logger.removeFilter(each)


_FILTERS: tuple[tuple[logging.Logger, type[logging.Filter]], ...] = (
    (logging.getLogger("celery.app.trace"), _InterruptedFilter),
    (logging.getLogger("celery.worker.consumer.consumer"), _CancelledFilter),
    (logging.getLogger("celery.worker.consumer.consumer"), _ErrorFilter),
    (logging.getLogger("celery.worker.worker"), _ErrorFilter),
)


def _installed(logger: logging.Logger, kind: type[logging.Filter]) -> list[Any]:
    return [each for each in logger.filters if isinstance(each, kind)]
