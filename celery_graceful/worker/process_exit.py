"""How a worker's process is left when all is said and done: at once, or by force.

Both skip the interpreter's own end, so both see to what others have left for the end of the
process: exit handlers, the signal ``worker_shutdown``, the file of ``--statedb``, the pidfile.
"""

from __future__ import annotations

import atexit
import inspect
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import celery
from celery import signals as celery_signals
from celery.apps.worker import _reload_current_worker
from celery.platforms import EX_FAILURE, EX_OK

from celery_graceful.cleanup import callbacks, time_limit
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.membership.broker_servers import Servers
from celery_graceful.pools import Adapter
from celery_graceful.system.log_thread import LogThread
from celery_graceful.system.native import bounded, bounded_all
from celery_graceful.timeline.board import Board
from celery_graceful.timeline.grace_period import Deadlines
from celery_graceful.worker.exit_handlers import ExitHandlers
from celery_graceful.worker.giving_up import GivingUp
from celery_graceful.worker.report import Report
from celery_graceful.worker.restart import Restart
from celery_graceful.worker.signal_pipe import SignalPipe

__all__ = ["ProcessExit"]

#: Seconds that the standard streams get at the very end.
LAST_WORDS = 0.1

#: Share of the time after the hard deadline that the last resort leaves for cleanups that
#: have not run. At 0.6 of it is the last resort, at 0.9 the watchdog's SIGKILL.
LAST_CLEANUPS = 0.1

#: Seconds that receivers of ``worker_shutdown`` get where Celery's cold shutdown sends none.
LAST_RECEIVERS = 1.0

#: What ``python -m celery`` runs.
_MODULE = os.path.join(os.path.dirname(celery.__file__), "__main__.py")

#: The name of the installed script.
_SCRIPT = "celery"

#: What else is between it and a worker.
_BETWEEN = ("celery", "click", "runpy")


class ProcessExit:
    """The end of one worker's process.

    Args:
        worker: Celery's ``WorkController``.
        deadlines: Seconds after a request to stop.
        board: What all of its processes know.
        ledger: What it held.
        adapter: Of its pool.
        places: Where it is a member.
        giving_up: What becomes of its tasks at the hard deadline.
        signal_pipe: Its watchdog is ended when the process goes on as another program.
        restart: Whether it does.
        report: The last line of its log.
        log: Where that goes.
    """

    def __init__(
        self,
        worker: Any,
        deadlines: Deadlines,
        board: Board,
        ledger: Ledger,
        adapter: Adapter,
        places: Servers,
        giving_up: GivingUp,
        signal_pipe: SignalPipe,
        restart: Restart,
        report: Report,
        log: LogThread,
    ) -> None:
        self.worker = worker
        self.deadlines = deadlines
        self.board = board
        self.ledger = ledger
        self.adapter = adapter
        self.places = places
        self.giving_up = giving_up
        self.signal_pipe = signal_pipe
        self.restart = restart
        self.report = report
        self.log = log
        self._exit_handlers = ExitHandlers()
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
                self.log(logging.ERROR, "No time left for receivers of worker_shutdown")
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
                self.log(logging.ERROR, "Could not write the state file: %r", exc)

    def _run_exit_handlers(self) -> None:
        atexit.unregister(self.at_once)  # the first of them
        self._exit_handlers.run()

    # -- ways out ------------------------------------------------------------------------

    def leave_at_exit(self) -> None:
        """The worker was asked to stop, and has stopped; the process is its own."""
        # Celery's own, from a SIGHUP that came before our handlers were there.
        atexit.unregister(_reload_current_worker)
        self._exit_handlers.expect()
        if self.giving_up.has_begun or self.restart.asked_for or _is_program():
            atexit.register(self.at_once)

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
                self.giving_up.wait()  # it says how it went
                self.log.flush(LAST_WORDS)
                _flush()
            finally:
                self._end()

    def by_force(self) -> NoReturn:
        """The last resort, while there is still time to do it ourselves."""
        self.adapter.leave()
        try:
            _end_beat(self.worker)
            left = min(1.0, LAST_CLEANUPS * (self.deadlines.grace - self.deadlines.hard))
            end = time.monotonic() + left
            last: list[Callable[[], None]] = [
                lambda: callbacks.run(end=end),
                self.places.leave,
                self.save_state,
                lambda: self.tell(left),
            ]
            bounded_all(last, 1.5 * left)
            self.report.write()
            self.log.flush(LAST_WORDS)
            self.board.close()
            if self.worker.pidlock:
                self.worker.pidlock.release()
            bounded(self._run_exit_handlers, left / 2)
            bounded(_flush, LAST_WORDS)
        finally:
            self._end()

    def _end(self) -> NoReturn:
        try:
            if self.restart.asked_for:
                self.log(logging.WARNING, "Starting anew, as SIGHUP asks")
                self.log.flush(LAST_WORDS)
                self.signal_pipe.end_watchdog()
                self.restart.execute()
        except BaseException as exc:
            self.log(logging.CRITICAL, "Could not start anew: %r", exc)
            self.log.flush(LAST_WORDS)
        finally:
            os._exit(self._status)

    @property
    def _status(self) -> int:
        return int(EX_FAILURE if self.ledger.failed else self.worker.exitcode or EX_OK)


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


def _is_program() -> bool:
    """Whether the program is `celery worker`: all it does yet is to exit with the worker's status.

    A script that starts a worker may go on when the worker has ended.
    """
    frame: FrameType | None = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") != "celery.bin.worker":
        frame = frame.f_back
    while frame is not None:
        path, name = frame.f_code.co_filename, frame.f_globals.get("__name__", "")
        if name == "__main__":
            return path == _MODULE or os.path.basename(path) == _SCRIPT
        if name.partition(".")[0] not in _BETWEEN:
            return False
        frame = frame.f_back
    return False
