"""Signals that are heard also while the main thread sits in a C call, where no handler runs.

Python's handler in C writes their numbers to a pipe: to the bell of the watch; or to the watchdog,
which passes them on, where a task may hold the interpreter for ever.
"""

from __future__ import annotations

import signal

from celery_graceful.system.process import Owner, Slot, emptied
from celery_graceful.worker.drain import Drain
from celery_graceful.worker.watchdog import Watchdog

__all__ = ["SignalPipe"]


class SignalPipe:
    """That of one worker.

    Args:
        drain: Its bell is what the watch waits for.
        owner: Of what the process has from this worker.
        in_process: Tasks run in this process.
    """

    def __init__(self, drain: Drain, owner: Owner, *, in_process: bool) -> None:
        self.drain = drain
        self._owner = owner
        self._in_process = in_process
        self._watchdog: Watchdog | None = None

    def start(self) -> None:
        """Hear all signals from now on. In the main thread."""
        fd = self.drain.bell.write_fd
        if self._in_process:
            d = self.drain.deadlines
            self._watchdog = Watchdog(d.last_resort + 0.75 * (d.grace - d.last_resort), fd)
            fd = self._watchdog.fd
        signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
        self._owner.fill(_hears, True)

    def start_clock(self) -> None:
        """The worker was asked to stop, perhaps by something else than a signal."""
        if self._watchdog is not None:
            self._watchdog.start_clock()

    def end_watchdog(self) -> None:
        """The process goes on as another program."""
        if self._watchdog is not None:
            self._watchdog.end()


def _stop_hearing(hears: Slot[bool]) -> None:
    """In a forked child: its signals are its own."""
    if hears.value:
        emptied(hears)
        try:
            signal.set_wakeup_fd(-1)
        except ValueError:
            pass  # forked from another thread


#: All signals of this process are heard.
_hears = Slot("hears signals", bool, in_fork=_stop_hearing)
