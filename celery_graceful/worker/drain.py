"""The drain: what was asked of a worker, and the clock that starts then.

Three parties, each with its own share:

* the *signal handler* notes the moment on the board, rings, and returns;
* the *watch* (``watch.py``), a real thread, holds the deadlines;
* the *loop* (``quiesce.py``) stops fetching, gives back what was not started, and lets
  Celery's own warm shutdown begin when nothing is left to wait for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from celery import signals as celery_signals
from celery.platforms import EX_OK

from celery_graceful import signals
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.membership import events
from celery_graceful.phases import InterruptReason, Phase
from celery_graceful.settings import Settings
from celery_graceful.system import native
from celery_graceful.system.log_thread import LogThread
from celery_graceful.timeline.board import Board
from celery_graceful.timeline.grace_period import Deadlines
from celery_graceful.worker.restart import Restart

__all__ = ["HARD", "LIMIT", "QUIET", "RESUME", "STOP", "STOPPED", "Drain"]

#: What the watch can be rung for; numbers below 65 are signals.
STOP, QUIET, RESUME, HARD, LIMIT, STOPPED = b"S", b"Q", b"R", b"H", b"L", b"X"


class Drain:
    """The drain of one worker.

    Args:
        worker: Celery's ``WorkController``.
        settings: What the user set.
        deadlines: Seconds after a request to stop.
        board: Where all processes of the worker see it.
        ledger: What the worker holds.
        restart: How the worker was started.
        log: Holds up nobody.
    """

    def __init__(
        self,
        worker: Any,
        settings: Settings,
        deadlines: Deadlines,
        board: Board,
        ledger: Ledger,
        restart: Restart,
        log: LogThread,
    ) -> None:
        self.worker = worker
        self.settings = settings
        self.deadlines = deadlines
        self.board = board
        self.ledger = ledger
        self.restart = restart
        self.log = log
        self._listeners: list[Callable[[], None]] = []
        self._at_once: list[Callable[[], None]] = []
        #: What the watch waits for.
        self.bell = native.Doorbell()
        self.asked_by = ""

    @property
    def stopping(self) -> bool:
        return self.board.interrupted

    def add_listener(self, on_phase: Callable[[], None]) -> None:
        """Have something called in the watch when the worker has come to another phase."""
        self._listeners.append(on_phase)

    def add_first_listener(self, on_stop: Callable[[], None]) -> None:
        """Have something called where a stop is asked for, if it is safe in a signal handler."""
        self._at_once.append(on_stop)

    def ring(self, what: bytes = b".") -> None:
        """Ring the watch. From any thread, or a signal handler."""
        self.bell.ring(what)

    def end(self) -> None:
        """Nobody watches any more."""
        self.bell = native.SILENT

    # -- asked for: safe in a signal handler ---------------------------------------

    def request_stop(self, asked_by: str, *, restart: bool = False) -> None:
        """Begin the drain. Asking again changes nothing, but that a stop is no restart."""
        if not self.stopping:
            self.asked_by = asked_by
            self.restart.ask(restart)
            self.board.release(self.settings.release_prefetched)
            self.board.begin_stop(self.deadlines, InterruptReason.SHUTDOWN)
            self.ledger.begin_stop()
            # At once: what arrives, or gets its turn, from now on goes back.
            if self.settings.release_prefetched:
                self.ledger.begin_release()
            for on_stop in self._at_once:
                on_stop()
            self.ring(STOP)
        elif self.restart.asked_for and not restart:
            self.restart.ask(False)
            self.log(logging.WARNING, "%s: it will not start anew", asked_by)

    def on_hangup(self) -> None:
        """SIGHUP: a new start, as in Celery; where a terminal was closed, a stop."""
        self.request_stop("SIGHUP", restart=not getattr(self.worker, "_isatty", True))

    def request_hard(self, asked_by: str) -> None:
        """Begin the drain, if need be, and jump to its hard deadline."""
        self.request_stop(asked_by)
        self.ring(HARD)

    def request_quiet(self, asked_by: str) -> None:
        """Stop fetching, give back what was not started: a deploy's first step. Tasks go on."""
        if not self.board.is_quiet:
            self.asked_by = asked_by
            self.board.release(self.settings.release_prefetched)
            self.board.enter(Phase.QUIET)
            if self.settings.release_prefetched:
                self.ledger.begin_release()
            self.ring(QUIET)

    def request_resume(self, asked_by: str) -> bool:
        """Fetch again, after a ``request_quiet``. False: it has been asked to stop, and will."""
        if self.board.is_quiet and not self.stopping:
            self.asked_by = asked_by
            self.ledger.end_release()
            self.board.release(False)
            self.board.enter(Phase.RUNNING)
            if self.stopping:  # a signal came in between: all of that is as it has set it
                self.board.enter(Phase.QUIET)
                self.board.release(self.settings.release_prefetched)
                if self.settings.release_prefetched:
                    self.ledger.begin_release()
            else:
                self.ring(RESUME)
        return not self.stopping

    # -- what others see -----------------------------------------------------------

    def announce(self, phase_: Phase) -> None:
        """Send the signals from a thread: receivers may take as long as they like."""
        for on_phase in self._listeners:
            on_phase()

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
        if events.are_on(self.worker):
            native.start_thread(lambda: self._tell_listeners(phase_), "graceful-events")

    def _tell_listeners(self, phase: Phase) -> None:
        left = round(self.board.hard_at - time.monotonic(), 1) if self.stopping else None
        said = {"phase": phase.name.lower(), "reason": str(self.board.reason), "seconds_left": left}
        events.send(self.worker, [("worker-draining", said)])
