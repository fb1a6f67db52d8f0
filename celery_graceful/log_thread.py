"""Logging that never holds up whoever logs.

The watch over a drain must not wait for a log: a full pipe to a log collector that hangs, or
a lock that a stuck task holds, would cost the drain its deadlines.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

from celery_graceful import native

__all__ = ["LogThread"]


class LogThread:
    """Writes records, in their order, from a real thread of its own.

    Args:
        logger: Where to.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._records: deque[logging.LogRecord] = deque()
        self._bell = native.Doorbell()
        self._written = native.Doorbell()
        native.start_thread(self._write, "graceful-log")

    def __call__(self, level: int, message: str, *args: Any) -> None:
        """Log with the time of the call."""
        if self._logger.isEnabledFor(level):
            self._records.append(
                self._logger.makeRecord(self._logger.name, level, __file__, 0, message, args, None)
            )
            self._bell.ring()

    def flush(self, seconds: float) -> None:
        """Wait until all has been written, for up to ``seconds``."""
        self._written.take()
        self._bell.ring()
        self._written.wait(seconds)

    def _write(self) -> None:
        while True:
            self._bell.wait(None)
            while self._records:
                self._logger.handle(self._records.popleft())
            self._written.ring()
