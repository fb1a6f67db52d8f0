"""The drain: walks a stopping worker through its phases.

Three parties, each with its own share:

* the *signal handler* notes the moment on the board, rings, and returns;
* the *watch* (``watch.py``), a real thread, holds the deadlines;
* the *loop* (``quiesce.py``) stops fetching, gives back what was not started, and lets
  Celery's own warm shutdown begin when nothing is left to wait for.
"""

from __future__ import annotations

import atexit
import inspect
import logging
import os
from types import FrameType
from typing import Any

import celery
from celery import signals as celery_signals
from celery.apps.worker import _reload_current_worker
from celery.platforms import EX_OK
from celery.utils.log import get_logger

from celery_graceful import log_thread, native, signals, worker_state
from celery_graceful.board import Board
from celery_graceful.copies import Copies
from celery_graceful.forget import Forget
from celery_graceful.grace_period import Deadlines
from celery_graceful.handover import Handovers
from celery_graceful.host import Host
from celery_graceful.inquest import Inquest
from celery_graceful.leaving import Leaving
from celery_graceful.ledger import Ledger
from celery_graceful.log_thread import LogThread
from celery_graceful.loop import Loop
from celery_graceful.misfits import Misfits
from celery_graceful.monitors.heartbeat import Heartbeats
from celery_graceful.monitors.monitors import monitors_of
from celery_graceful.other_consumers import OtherConsumers
from celery_graceful.phase import InterruptReason, Phase
from celery_graceful.places import Places
from celery_graceful.pools import kind_of
from celery_graceful.process import Owner
from celery_graceful.quiesce import Quiesce
from celery_graceful.report import report
from celery_graceful.requeue import Requeue
from celery_graceful.restart import Restart
from celery_graceful.revocation import Revocations
from celery_graceful.settings import Settings
from celery_graceful.store import disconnect
from celery_graceful.watch import HARD, QUIET, STOP, STOPPED, Watch

__all__ = ["Drain"]

logger = get_logger(__name__)

#: Seconds that each thread of an embedded worker gets for its end.
LAST_THREADS = 1.0

#: Seconds for giving back what waits for workers of a kind that is not there any more.
LAST_MISFITS = 0.5

#: What ``python -m celery`` runs.
_MODULE = os.path.join(os.path.dirname(celery.__file__), "__main__.py")

#: The name of the installed script.
_SCRIPT = "celery"

#: What else is between it and a worker.
_BETWEEN = ("celery", "click", "runpy")


class Drain:
    """The drain of one worker.

    Args:
        worker: Celery's ``WorkController``.
        settings: What the user set.
        deadlines: Seconds after a request to stop.
        embedded: The worker runs in a thread of a program that is something else.
    """

    def __init__(
        self, worker: Any, settings: Settings, deadlines: Deadlines, *, embedded: bool = False
    ) -> None:
        self.worker = worker
        self.settings = settings
        self.deadlines = deadlines
        app, kind = worker.app, kind_of(worker)
        self.loop = Loop(worker, green=kind.is_green)
        inquest = Inquest(app, self.loop.ring, in_process=kind.in_process)
        self.ledger = Ledger(Requeue(app, self.loop), inquest)
        self.adapter = kind.adapter(
            worker,
            self.ledger,
            Handovers(self.ledger),
            ring_loop=self.loop.ring,
            read_pending=self.loop.read_pending,
        )
        #: Of what this process has from this worker.
        self.owner = Owner()
        self.log = log_thread.current = LogThread(
            logger, through_loop=self.loop.ring if kind.is_green else None
        )
        self.embedded = embedded
        self.restart = Restart()
        #: SIGHUP is ours to handle.
        self.hears_hangup = False
        self.board = Board.create(spawn=kind.spawns)
        worker_state.attach(self.board, self.owner)
        self.quiesce = Quiesce(self)
        #: What it consumes besides its tasks.
        self.others = OtherConsumers()
        self.watch = Watch(self)
        self.leaving = Leaving(self)
        self.ledger.add_listener(self.quiesce.on_change)
        self.heartbeats = Heartbeats(
            self.ledger.check_ins, monitors_of(worker.app).dispatch.heartbeat
        )
        self.misfits = Misfits(self)
        self.revocations = Revocations(self)
        self.host = Host(
            self.ledger,
            Copies(self.ledger),
            Forget(app),
            process=worker._process_task,
            can_pass_by=kind.can_pass_by,
            is_connected=lambda: self.loop.alive,
            revoke=self.revocations.begin,
            on_check_in=self.heartbeats.begin,
        )
        self.asked_by = ""
        #: Nothing is fetched or started any more.
        self.quiet = False
        self._reported = self._stopped = False
        #: Where it is a worker among others.
        self.places = Places(self)
        for on_loop in (
            self.places.on_loop,
            self.adapter.on_loop,
            self.log.write_pending,
            self.ledger.inquest.on_loop,
            self.revocations.on_loop,
            self.misfits.on_loop,
            self.quiesce.on_loop,
        ):
            self.loop.add_listener(on_loop)

    def start(self) -> None:
        """Start the watch; before the pool starts."""
        self.adapter.prepare()
        self.adapter.keep_jobs()
        if not self.embedded:
            self.watch.hear_all_signals()
        self.watch.start()
        self.ledger.inquest.start()

    @property
    def stopping(self) -> bool:
        return self.board.interrupted

    # -- asked for: safe in a signal handler ---------------------------------------

    def request_stop(self, asked_by: str, *, restart: bool = False) -> None:
        """Begin the drain. Asking again changes nothing, but that a stop is no restart."""
        if not self.stopping:
            self.asked_by = asked_by
            self.restart.asked_for = restart
            self.board.releasing = self.settings.release_prefetched
            self.board.begin_stop(self.deadlines, InterruptReason.SHUTDOWN)
            self.ledger.begin_stop()
            self._be_quiet()
            self.watch.bell.ring(STOP)
        elif self.restart.asked_for and not restart:
            self.restart.asked_for = False
            self.log(logging.WARNING, "%s: it will not start anew", asked_by)

    def on_hangup(self) -> None:
        """SIGHUP: a new start, as in Celery; where a terminal was closed, a stop."""
        self.request_stop("SIGHUP", restart=not getattr(self.worker, "_isatty", True))

    def request_hard(self, asked_by: str) -> None:
        """Begin the drain, if need be, and jump to its hard deadline."""
        self.request_stop(asked_by)
        self.watch.bell.ring(HARD)

    def request_quiet(self, asked_by: str) -> None:
        """Stop fetching, give back what was not started: a deploy's first step. Tasks go on."""
        if not self.quiet:
            self.asked_by = asked_by
            self.board.releasing = self.settings.release_prefetched
            self.board.phase = Phase.QUIET
            self._be_quiet()
            self.watch.bell.ring(QUIET)

    def _be_quiet(self) -> None:
        self.quiet = True
        # At once: what arrives, or gets its turn, from now on goes back.
        if self.settings.release_prefetched:
            self.ledger.begin_release()

    # -- what others see -----------------------------------------------------------

    def announce(self, phase_: Phase) -> None:
        """Send the signals from a thread: receivers may take as long as they like."""

        def send() -> None:
            if phase_ is Phase.QUIET and self.stopping:
                celery_signals.worker_shutting_down.send(
                    sender=self.worker.hostname, sig=self.asked_by, how="Warm", exitcode=EX_OK
                )
            signals.worker_draining.send(
                sender=self.worker.hostname,
                phase=phase_,
                reason=self.board.reason,
                deadlines=self.deadlines,
            )

        native.start_thread(send, "graceful-signals")

    def stopped(self) -> None:
        """Celery has stopped all of the worker."""
        self._stopped = True
        self.watch.wait_given_up()
        self.watch.giving_up.end()
        self.report()
        self.log.write_pending()
        self.board.close()
        self.misfits.end(LAST_MISFITS)
        self.places.leave()
        if log_thread.current is self.log:
            log_thread.current = None
        self.watch.bell.ring(STOPPED)
        if self.stopping and not self.embedded:
            # Celery's own, from a SIGHUP that came before our handlers were there.
            atexit.unregister(_reload_current_worker)
            if self.watch.given_up or self.restart.asked_for or _is_program():
                atexit.register(self.leaving.at_once)

    def end(self) -> None:
        """The process goes on without the worker: end all that it began there."""
        if not self._stopped:  # it did not get far, or hangs
            self.misfits.end(LAST_MISFITS)
            self.places.leave()
        self.heartbeats.end()
        self.watch.end(LAST_THREADS)
        self.loop.end(LAST_THREADS)
        self.ledger.inquest.end(LAST_THREADS)
        self.log.end(LAST_THREADS)
        if log_thread.current is self.log:
            log_thread.current = None
        self.owner.end()
        self.board.close()
        self.places.disconnect()
        disconnect(self.worker.app)

    def report(self) -> None:
        """Write the final report, once."""
        if self.stopping and not self._reported:
            self._reported = True
            self.log(logging.WARNING, report(self.ledger, self.board))


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
