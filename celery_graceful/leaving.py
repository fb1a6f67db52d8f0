"""How a worker's process is left when all is said and done: at once, or by force.

Both skip the interpreter's own end, so both see to what others have left for the end of the
process: exit handlers, the signal ``worker_shutdown``, the file of ``--statedb``, the pidfile.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from celery import signals as celery_signals
from celery.platforms import EX_FAILURE, EX_OK

from celery_graceful import cleanup, time_limit
from celery_graceful.native import bounded, bounded_all

if TYPE_CHECKING:
    from celery_graceful.drain import Drain

__all__ = ["Leaving"]

#: Seconds that the standard streams get at the very end.
LAST_WORDS = 0.1

#: Share of the time after the hard deadline that the last resort leaves for cleanups that
#: have not run. At 0.6 of it is the last resort, at 0.9 the sentinel's SIGKILL.
LAST_CLEANUPS = 0.1

#: Seconds that receivers of ``worker_shutdown`` get where Celery's cold shutdown sends none.
LAST_RECEIVERS = 1.0


class Leaving:
    """The end of one worker's process.

    Args:
        drain: The worker's drain.
    """

    def __init__(self, drain: Drain) -> None:
        self.drain = drain
        self.worker = drain.worker
        self._at_exit = False
        self._told = False
        celery_signals.worker_shutdown.connect(self._was_told, sender=self.worker)

    def _was_told(self, **_: object) -> None:
        self._told = True

    # -- what others wait for ------------------------------------------------------------

    def tell(self, seconds: float) -> None:
        """Send ``worker_shutdown``, if Celery did not: a drain is a warm shutdown to others."""
        if self._told:
            return
        self._told = True
        if time_limit.reachable():
            try:
                time_limit.call(self.worker._send_worker_shutdown, seconds)
            except time_limit.Overrun:
                self.drain.log(logging.ERROR, "No time left for receivers of worker_shutdown")
        else:
            bounded(self.worker._send_worker_shutdown, seconds)

    def save_state(self) -> None:
        """Write the file of ``--statedb``, if that was not done."""
        persistence = self.worker._persistence
        if persistence is not None and persistence._is_open:
            atexit.unregister(persistence.save)
            try:
                persistence.save()
            except Exception as exc:
                self.drain.log(logging.ERROR, "Could not write the state file: %r", exc)

    def _run_exit_handlers(self) -> None:
        if not self._at_exit:
            self._at_exit = True
            atexit.unregister(self.at_once)  # the first of them
            atexit._run_exitfuncs()

    # -- ways out ------------------------------------------------------------------------

    def at_once(self) -> NoReturn:
        """The first of the exit handlers: run the others, and spare the interpreter its own end.

        It would take apart all modules, and what tasks that were given up still use, and throw
        an exception into each of their greenlets: 0.2 s and more of a processor, in which no
        thread runs, so that nobody holds the grace.
        """
        try:
            self._run_exit_handlers()
        finally:
            try:
                self.drain.watch.wait_given_up()  # it says how it went
                self.drain.log.flush(LAST_WORDS)
                _flush()
            finally:
                self._end()

    def by_force(self) -> NoReturn:
        """The last resort, while there is still time to do it ourselves."""
        drain = self.drain
        drain.adapter.leave()
        try:
            _end_beat(self.worker)
            left = min(1.0, LAST_CLEANUPS * (drain.deadlines.grace - drain.deadlines.hard))
            end = time.monotonic() + left
            last: list[Callable[[], None]] = [
                lambda: cleanup.run(end=end),
                drain.places.leave,
                self.save_state,
                lambda: self.tell(left),
            ]
            bounded_all(last, 1.5 * left)
            drain.report()
            drain.log.flush(LAST_WORDS)
            drain.board.close()
            if self.worker.pidlock:
                self.worker.pidlock.release()
            bounded(self._run_exit_handlers, left / 2)
            bounded(_flush, LAST_WORDS)
        finally:
            self._end()

    def _end(self) -> NoReturn:
        try:
            if self.drain.restart.asked_for:
                self.drain.log(logging.WARNING, "Starting anew, as SIGHUP asks")
                self.drain.log.flush(LAST_WORDS)
                self.drain.watch.end_sentinel()
                self.drain.restart.execute()
        except BaseException as exc:
            self.drain.log(logging.CRITICAL, "Could not start anew: %r", exc)
            self.drain.log.flush(LAST_WORDS)
        finally:
            os._exit(self._status)

    @property
    def _status(self) -> int:
        return int(EX_FAILURE if self.drain.ledger.failed else self.worker.exitcode or EX_OK)


def _end_beat(worker: object) -> None:
    """The process of ``-B``, which Celery would have ended."""
    pid = getattr(getattr(worker, "beat", None), "pid", None)
    if pid is not None:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            pass


def _flush() -> None:
    sys.stderr.flush()
    sys.stdout.flush()
