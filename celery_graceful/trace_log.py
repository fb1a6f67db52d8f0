"""Celery logs an interrupted task as "ignored"; this filter says what it was."""

from __future__ import annotations

import logging

from celery_graceful.exceptions import TaskInterrupted
from celery_graceful.phase import InterruptReason

__all__ = ["install_filter"]


_GOES_BACK = "Task %(name)s[%(id)s] interrupted: it goes back to its queue"
_HAS_ENDED = "Task %(name)s[%(id)s] has stopped: it was revoked"
_REVOKED = repr(TaskInterrupted(str(InterruptReason.REVOKED)))


class _InterruptedFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        data = getattr(record, "data", None)
        if (
            isinstance(data, dict)
            and data.get("description") == "ignored"
            and str(data.get("exc", "")).startswith(f"{TaskInterrupted.__name__}(")
        ):
            record.msg = _HAS_ENDED if data["exc"] == _REVOKED else _GOES_BACK
        return True


def install_filter() -> None:
    """Put the filter on Celery's trace logger, once."""
    trace = logging.getLogger("celery.app.trace")
    if not any(isinstance(f, _InterruptedFilter) for f in trace.filters):
        trace.addFilter(_InterruptedFilter())
