"""Logging that never holds up whoever logs.

The watch over a drain must not wait for a log: a full pipe to a log collector that hangs, or
a lock that a stuck task holds, would cost the drain its deadlines.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from celery_graceful.system import native
from celery_graceful.system.process import Slot, emptied

__all__ = ["LogThread", "log"]

#: Seconds that a hub gets to write the log itself.
HUB_PATIENCE = 0.5


class LogThread:
    """Writes records, in their order, from a real thread of its own.

    Args:
        logger: Where to.
        through_loop: Rings the loop, which calls ``write_pending``; where tasks run on greenlets.
            Locks of gevent and eventlet, and those of logging are such there, cannot be fought
            for by a hub and a thread.
    """

    def __init__(
        self, logger: logging.Logger, through_loop: Callable[[], None] | None = None
    ) -> None:
        self._logger = logger
        self._through_loop = through_loop
        self._records: deque[logging.LogRecord | Callable[[], None]] = deque()
        self._bell = native.Doorbell()
        self._hurry = False
        self._ended = False
        self._thread = native.start_thread(self._write, "graceful-log")

    def __call__(self, level: int, message: str, *args: Any, logger: Any = None) -> None:
        """Log with the time of the call, as ``logger``."""
        logger = logger or self._logger
        if logger.isEnabledFor(level):
            record = logger.makeRecord(logger.name, level, __file__, 0, message, args, None)
            self._records.append(record)
            if self._ended:
                self.write_pending()
            self._bell.ring()

    def end(self, seconds: float) -> None:
        """The process goes on without it: write what there is, end the thread."""
        self._hurry = self._ended = True
        self._bell.ring()
        self._thread.wait(seconds)
        self._bell = native.SILENT
        self.write_pending()

    def flush(self, seconds: float) -> None:
        """Wait until all has been written, for up to ``seconds``."""
        self._hurry = True
        written = native.Latch()
        written.acquire()
        self._records.append(written.release)
        self._bell.ring()
        written.acquire(timeout=seconds)

    def write_pending(self) -> None:
        """Write what has been logged so far, here and now."""
        while True:
            try:
                record = self._records.popleft()
            except IndexError:
                return
            if callable(record):
                record()
            else:
                self._logger.handle(record)

    def _write(self) -> None:
        while not self._ended:
            self._bell.wait(None)
            self._wait_for_the_hub()
            self.write_pending()

    def _wait_for_the_hub(self) -> None:
        if self._through_loop is not None:
            self._through_loop()
            for _ in range(int(HUB_PATIENCE * 100)):
                if not self._records or self._hurry:
                    return
                native.pause(0.01)


#: Of the worker that this process is the main process of; a pool's child logs by itself.
current: Slot[LogThread | None] = Slot("log thread", lambda: None, in_fork=emptied)


def log(logger: logging.Logger, level: int, message: str, *args: Any) -> None:
    """Log from a thread of our own: in a worker through its log thread."""
    thread = current.value
    if thread is not None:
        thread(level, message, *args, logger=logger)
    else:
        logger.log(level, message, *args)
