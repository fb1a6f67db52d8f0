"""Logging that never holds up whoever logs.

The watch over a drain must not wait for a log: a full pipe to a log collector that hangs, or
a lock that a stuck task holds, would cost the drain its deadlines.
"""

from __future__ import annotations

import logging
import logging.handlers
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
        self._handle = logger.handle if through_loop is None else self._past_the_hub
        self._records: deque[logging.LogRecord | Callable[[], None]] = deque()
        #: Written in the place of a hub, and not told yet to who listens besides handlers.
        self._untold: deque[logging.LogRecord] = deque()
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
                self._write_all(self._handle)
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
        self._write_all(self._logger.handle)
        while self._untold:
            _tell_listeners(self._untold.popleft())

    def _write_all(self, handle: Callable[[logging.LogRecord], None]) -> None:
        while True:
            try:
                record = self._records.popleft()
            except IndexError:
                return
            if callable(record):
                record()
            else:
                handle(record)

    def _write(self) -> None:
        while not self._ended:
            self._bell.wait(None)
            self._wait_for_the_hub()
            self._write_all(self._handle)

    def _wait_for_the_hub(self) -> None:
        if self._through_loop is not None:
            self._through_loop()
            for _ in range(int(HUB_PATIENCE * 100)):
                if not self._records or self._hurry:
                    return
                native.pause(0.01)

    def _past_the_hub(self, record: logging.LogRecord) -> None:
        """As the logger's ``handle``, in the place of a hub that is busy.

        Not for locks of streams' handlers: a greenlet that waits for one that a thread has is never
        woken by eventlet, and seldom by gevent.
        """
        logger: logging.Logger | None = self._logger
        if self._logger.disabled or not self._logger.filter(record):
            return
        while logger is not None:
            for handler in logger.handlers:
                if record.levelno >= handler.level:
                    _write_by(handler, record)
            logger = logger.parent if logger.propagate else None
        self._untold.append(record)


#: What writes to the handler's stream, and does nothing else that could not wait.
_TO_A_STREAM = {
    cls.emit
    for cls in (
        logging.StreamHandler,
        logging.FileHandler,
        logging.handlers.WatchedFileHandler,
        logging.handlers.BaseRotatingHandler,
    )
}


def _write_by(handler: logging.Handler, record: logging.LogRecord) -> None:
    stream = getattr(handler, "stream", None)
    if stream is None or type(handler).emit not in _TO_A_STREAM:
        handler.handle(record)
    elif handler.filter(record):
        try:
            stream.write(handler.format(record) + handler.terminator)  # type: ignore[attr-defined]
            stream.flush()
        except Exception:
            handler.handleError(record)


_NOWHERE = logging.NullHandler()


def _tell_listeners(record: logging.LogRecord) -> None:
    """Who has replaced ``Logger.callHandlers``, as Sentry's SDK does; handlers have written it."""
    logger = logging.Logger(record.name)
    logger.propagate = False
    logger.addHandler(_NOWHERE)
    logger.callHandlers(record)


#: Of the worker that this process is the main process of; a pool's child logs by itself.
current: Slot[LogThread | None] = Slot("log thread", lambda: None, in_fork=emptied)


def log(logger: logging.Logger, level: int, message: str, *args: Any) -> None:
    """Log from a thread of our own: in a worker through its log thread."""
    thread = current.value
    if thread is not None:
        thread(level, message, *args, logger=logger)
    else:
        logger.log(level, message, *args)
