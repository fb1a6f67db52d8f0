"""What a test's own thread has logged: those that other tests have left may still be at it."""

from __future__ import annotations

import logging
import threading

import pytest

__all__ = ["own_records"]


def own_records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The records that were made in this thread."""
    return [record for record in caplog.records if record.thread == threading.get_ident()]
