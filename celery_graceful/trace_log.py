"""Celery logs an interrupted task as "ignored"; this filter says what it was."""

from __future__ import annotations

import logging

from celery_graceful.exceptions import TaskInterrupted

__all__ = ["install_filter"]


class _InterruptedFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        data = getattr(record, "data", None)
        if (
            isinstance(data, dict)
            and data.get("description") == "ignored"
            and str(data.get("exc", "")).startswith(f"{TaskInterrupted.__name__}(")
        ):
            record.msg = "Task %(name)s[%(id)s] interrupted: it goes back to its queue"
        return True


def install_filter() -> None:
    """Put the filter on Celery's trace logger, once."""
    trace = logging.getLogger("celery.app.trace")
    if not any(isinstance(f, _InterruptedFilter) for f in trace.filters):
        trace.addFilter(_InterruptedFilter())
