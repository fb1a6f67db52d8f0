"""Celery's lines about tasks that are, with celery_graceful, not what they say.

It logs an interrupted task as "ignored", and of one whose claim outlives a lost connection that
it is terminated. These filters say what is the case.
"""

from __future__ import annotations

import logging

from celery_graceful.exceptions import TaskInterrupted
from celery_graceful.phase import InterruptReason

__all__ = ["install_filter"]


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


def install_filter() -> None:
    """Put the filters on Celery's loggers, once."""
    for name, kind in (
        ("celery.app.trace", _InterruptedFilter),
        ("celery.worker.consumer.consumer", _CancelledFilter),
    ):
        logger = logging.getLogger(name)
        if not any(isinstance(f, kind) for f in logger.filters):
            logger.addFilter(kind())
