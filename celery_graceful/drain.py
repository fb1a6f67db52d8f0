"""The drain: walks a stopping worker through its phases, and writes the report.

Three parties, each with its own share:

* the *signal handler* notes the moment on the board, rings, and returns;
* the *watch*, a real thread, holds the deadlines. It needs neither the event loop nor the
  main thread, so it also sees to a worker whose loop hangs;
* the *loop* does what needs the broker connection: it stops fetching, gives back what was
  not started, and lets Celery's own warm shutdown begin when nothing is left to wait for.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from celery import signals as celery_signals
from celery.platforms import EX_FAILURE, EX_OK
from celery.utils.log import get_logger
from celery.worker import state

from celery_graceful import cleanup, native, phase, signals
from celery_graceful import run as _run
from celery_graceful.grace_period import Deadlines
from celery_graceful.log_thread import LogThread
from celery_graceful.loop import Loop
from celery_graceful.phase import Board, InterruptReason, Phase
from celery_graceful.pools import adapter_for
from celery_graceful.report import describe, report
from celery_graceful.request import GracefulRequest, Ledger
from celery_graceful.requeue import Requeue, bounded_connection
from celery_graceful.sentinel import Sentinel
from celery_graceful.settings import Settings
from celery_graceful.task import record

__all__ = ["Drain"]

logger = get_logger(__name__)

_STOP, _QUIET, _HARD, _LIMIT, _STOPPED = b"S", b"Q", b"H", b"L", b"X"

#: Seconds that the loop gets for its part before the watch tries without it.
LOOP_PATIENCE = 0.3

#: Seconds after which a fetch that was under way has ended (kombu asks for one second).
FETCH_PATIENCE = 1.2

#: Seconds between looks at it.
LOOK_AGAIN = 0.01

#: Seconds that the process gets to end by itself when nothing but threads with tasks that were
#: given up is left of it.
LAST_THREADS = 0.3

#: Seconds at most between the hard deadline and the last resort.
LAST_RESORT = 3.0

#: Seconds that the log and the standard streams get at the very end.
LAST_WORDS = 0.2

#: Share of the time after the hard deadline that the last resort leaves for cleanups that
#: have not run. At 0.6 of it is the last resort, at 0.8 the sentinel's SIGKILL.
LAST_CLEANUPS = 0.1

#: Seconds in which results of children that were just taken away may still arrive.
LAST_RESULTS = 0.05


class Drain:
    """The drain of one worker.

    Args:
        worker: Celery's ``WorkController``.
        settings: What the user set.
        deadlines: Seconds after a request to stop.
    """

    def __init__(self, worker: Any, settings: Settings, deadlines: Deadlines) -> None:
        self.worker = worker
        self.settings = settings
        self.deadlines = deadlines
        self.ledger = Ledger(Requeue(worker.app))
        self.ledger.on_change = self._on_change
        self.adapter = adapter_for(worker, self.ledger)
        self.log = LogThread(logger)
        #: The worker runs in a thread of a program that is something else (a test).
        self.embedded = not native.in_main_thread()
        self.board = Board.create(spawn=self.adapter.spawns)
        phase.attach(self.board)
        self.loop = Loop(worker, self._on_loop)
        self.ledger.requeue.fetching = self.loop.fetching
        self.adapter.ring_loop = self.loop.ring
        self.adapter.read_pending = self.loop.read_pending
        self.bell = native.Doorbell()
        _run.on_limited = lambda: self.bell.ring(_LIMIT)
        self.asked_by = ""
        self._begun = False
        self._quiet = self._quiesced = self._idle_seen = self._given_up = False
        self._failed_to_give_back = False
        self._sigints = 0
        self._reported = self._left = False
        self._last_resort_at = self._fetch_ends_by = float("inf")
        self._sentinel: Sentinel | None = None

    def start(self) -> None:
        """Start the watch; before the pool starts."""
        self.adapter.prepare()
        if not self.embedded:
            self._hear_all_signals()
        native.start_thread(self._watch, "graceful-watch")

    def _hear_all_signals(self) -> None:
        """Also while the main thread sits in a C call, where no handler in Python runs."""
        fd = self.bell.write_fd
        if self.adapter.in_process:
            d = self.deadlines
            self._sentinel = Sentinel(d.last_resort + (d.grace - d.last_resort) / 2, fd)
            fd = self._sentinel.fd
        signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_stop_hearing)

    @property
    def stopping(self) -> bool:
        return self.board.interrupted

    # -- asked for: safe in a signal handler ---------------------------------------

    def request_stop(self, asked_by: str) -> None:
        """Begin the drain. Asking again changes nothing."""
        if not self.stopping:
            self.asked_by = asked_by
            self.board.begin_stop(self.deadlines, InterruptReason.SHUTDOWN)
            self.ledger.stopping = True
            self.ledger.start_counting()
            self._be_quiet()
            self.bell.ring(_STOP)

    def request_hard(self, asked_by: str) -> None:
        """Begin the drain, if need be, and jump to its hard deadline."""
        self.request_stop(asked_by)
        self.bell.ring(_HARD)

    def request_quiet(self, asked_by: str) -> None:
        """Stop fetching, and nothing else: a deploy's first step."""
        if not self._quiet:
            self.asked_by = asked_by
            self.board.phase = Phase.QUIET
            self._be_quiet()
            self.bell.ring(_QUIET)

    def _be_quiet(self) -> None:
        self._quiet = True
        # At once: what arrives, or gets its turn, from now on goes back.
        self.ledger.releasing = self.settings.release_prefetched

    # -- the watch -----------------------------------------------------------------

    def _watch(self) -> None:
        while not self._left:
            rung = self.bell.wait(self._seconds_to_next())
            try:
                self._step(rung)
            except Exception:
                self.log(
                    logging.CRITICAL, "The watch over the drain failed: %s", traceback.format_exc()
                )
                if self.stopping and time.monotonic() > self.board.hard_at:
                    self._leave_by_force()

    def _hear_signals(self, rung: bytes) -> None:
        """The handlers have seen the same, where the main thread could run them."""
        self._sigints += rung.count(signal.SIGINT)
        if signal.SIGTERM in rung:
            self.request_stop("SIGTERM")
        if self._sigints:
            self.request_stop("SIGINT")
        if signal.SIGQUIT in rung:
            self.request_hard("SIGQUIT")
        if self._sigints > 1:
            self._sigints = 1
            self.request_hard("a second SIGINT")

    def _step(self, rung: bytes) -> None:
        self._hear_signals(rung)
        self._check_soft_limits()
        if _QUIET in rung:
            self.log(
                logging.WARNING,
                "Quiet, asked for by %s: fetching stops, tasks go on",
                self.asked_by,
            )
            self._announce(Phase.QUIET)
            self.loop.ring()
        if _STOP in rung and not self._begun:
            self._begin()
        if not self.stopping:
            return
        now = time.monotonic()
        if not self._quiesced and now >= self.board.requested_at + LOOP_PATIENCE:
            self._without_loop()
        if self.board.phase < Phase.SOFT and now >= self.board.soft_at:
            self._soften()
        if not self._given_up and (_HARD in rung or now >= self.board.hard_at):
            self._harden()
        if _STOPPED in rung and self._given_up:
            self._last_resort_at = min(self._last_resort_at, now + LAST_THREADS)
        if now >= self._last_resort_at:
            self._leave_by_force()

    def _seconds_to_next(self) -> float | None:
        moments = [
            run.soft_limit_at
            for run in list(_run.runs.values())
            if run.soft_limit_at is not None and not run.soft_limit_hit
        ]
        if self.stopping:
            if not self._quiesced and self._patience_left:
                moments.append(self.board.requested_at + LOOP_PATIENCE)
            if self.board.phase < Phase.SOFT:
                moments.append(self.board.soft_at)
            if not self._given_up:
                moments.append(self.board.hard_at)
            moments.append(self._last_resort_at)
        return None if not moments else max(0.0, min(moments) - time.monotonic())

    @property
    def _patience_left(self) -> bool:
        return time.monotonic() < self.board.requested_at + LOOP_PATIENCE

    def _check_soft_limits(self) -> None:
        now = time.monotonic()
        hit = [
            run
            for run in list(_run.runs.values())
            if run.soft_limit_at is not None and not run.soft_limit_hit and now >= run.soft_limit_at
        ]
        for run in hit:
            run.soft_limit_hit = True
            self.log(logging.WARNING, "Soft time limit exceeded for %s[%s]", run.name, run.task_id)
        if hit:
            self.adapter.notify()

    def _begin(self) -> None:
        """QUIET: tasks see the interrupt, the loop stops fetching."""
        self._begun = True
        self.adapter.notify()
        if self._sentinel is not None:
            self._sentinel.start_clock()
        self._last_resort_at = self.board.requested_at + self.deadlines.last_resort
        if self.loop.alive:
            self.loop.ring()
        else:
            # Starting up, or without a broker: Celery looks at this while it connects.
            state.should_stop = EX_OK
        self.log(
            logging.WARNING,
            "Stopping, asked for by %s: %g s of grace (%s), soft deadline in %.3g s, hard in "
            "%.3g s; running: %s",
            self.asked_by,
            self.deadlines.grace,
            self.deadlines.source,
            self.deadlines.soft,
            self.deadlines.hard,
            describe(self.ledger.active()),
        )
        self._announce(Phase.QUIET)

    def _soften(self) -> None:
        self.board.phase = Phase.SOFT
        self.adapter.notify()
        active = self.ledger.active()
        if active:
            self.log(
                logging.WARNING,
                "Soft deadline: %.3g s left for %s",
                self.board.hard_at - time.monotonic(),
                describe(active),
            )
        self._announce(Phase.SOFT)

    def _harden(self) -> None:
        """HARD: take away what still runs and give its message back."""
        self._given_up = True
        self.board.phase = Phase.HARD
        room = self.deadlines.grace - self.deadlines.hard
        active = self.ledger.active()
        if active:
            self.log(logging.ERROR, "Hard deadline: giving up %s", describe(active))
            self.adapter.take_away(active)
            native.Doorbell().wait(min(LAST_RESULTS, room / 10))
        given_up = [r for r in self.ledger.open_requests() if r.give_up()]
        self._last_resort_at = min(
            self._last_resort_at,
            time.monotonic() + min(LAST_RESORT, self.deadlines.last_resort - self.deadlines.hard),
        )
        self.board.last_resort_at = self._last_resort_at
        if given_up or self.ledger.requeue.deferred:
            bounded(lambda: self._record(given_up), room / 5)
            bounded(lambda: self._send_events(given_up, room / 10), room / 10)
            if not bounded(lambda: self._give_back(given_up, room / 10), room / 4):
                self._failed_to_give_back = True
        self.board.phase = Phase.EXIT
        state.should_terminate = EX_OK
        self.loop.ring()
        self._announce(Phase.HARD)

    def _record(self, requests: list[GracefulRequest]) -> None:
        for request in requests:
            record(request.task, request.context, str(self.board.reason), given_up=True)

    def _send_events(self, requests: list[GracefulRequest], timeout: float) -> None:
        """Over a connection of its own: the loop, whose the worker's is, may be stuck."""
        requests = [r for r in requests if r.wants_events]
        if requests:
            with bounded_connection(self.worker.app, timeout) as connection:
                dispatcher = self.worker.app.events.Dispatcher(
                    connection, hostname=self.worker.hostname
                )
                for request in requests:
                    dispatcher.send("task-interrupted", uuid=request.id)

    def _give_back(self, requests: list[GracefulRequest], timeout: float) -> None:
        try:
            self.ledger.requeue.flush(timeout=timeout, own_thread=True)
            self.ledger.requeue.give_back(requests, timeout=timeout, own_thread=True)
        except Exception as exc:
            self._failed_to_give_back = True
            self.log(
                logging.CRITICAL,
                "Could not give %s back (%r): the broker delivers again what it has not seen "
                "acknowledged",
                describe(requests),
                exc,
            )

    def _without_loop(self) -> None:
        """The loop has not come to its part: help where that is possible."""
        if self.loop.alive:
            self.adapter.stuck_loop(self._quiesce)

    def _leave_by_force(self) -> None:
        """The last resort, while there is still time to do it ourselves."""
        if self._left:
            return
        self._left = True
        self.adapter.leave()
        status = EX_FAILURE if self._failed_to_give_back else EX_OK
        try:
            room = self.deadlines.grace - self.deadlines.hard
            left = min(1.0, LAST_CLEANUPS * room)
            end = time.monotonic() + left
            bounded(lambda: cleanup.run(end=end), 1.5 * left)
            self.report()
            self.board.close()
            if self.worker.pidlock:
                self.worker.pidlock.release()
            bounded(_flush, LAST_WORDS)
        finally:
            os._exit(status)

    # -- the loop ------------------------------------------------------------------

    def _on_change(self) -> None:
        if self.stopping:
            self.loop.ring()

    def _on_loop(self) -> None:
        self.adapter.on_loop()
        if self._quiet:
            self._quiesce()
        if self.ledger.requeue.deferred:
            self._after_the_fetch()
        if self._given_up:
            self.loop.turn()
        elif self.stopping:
            self._stop_when_idle()

    def _quiesce(self) -> None:
        """Stop fetching and give back what was not started."""
        if self._quiesced:
            return
        self._quiesced = True
        self._fetch_ends_by = time.monotonic() + FETCH_PATIENCE
        self.loop.stop_fetching()
        if self.ledger.releasing:
            try:
                self.ledger.release_unstarted()
            except Exception as exc:
                self._failed_to_give_back = True
                logger.error("Could not give back what was not started: %r", exc)
        self.adapter.quiesce()

    def _after_the_fetch(self) -> None:
        """Give back what waited for the fetch that was under way."""
        if self.loop.fetching() and time.monotonic() < self._fetch_ends_by:
            self.worker.timer.call_after(LOOK_AGAIN, self.loop.ring)
            return
        try:
            self.ledger.requeue.fetching = lambda: False
            self.ledger.requeue.flush()
        except Exception as exc:
            self._failed_to_give_back = True
            logger.error("Could not give back what was not started: %r", exc)

    def _stop_when_idle(self) -> None:
        if self.ledger.held or self.ledger.requeue.deferred:
            self._idle_seen = False
        elif not self._idle_seen:
            # Acknowledgements of the last task may wait in the loop: one more turn.
            self._idle_seen = True
            self.loop.ring()
        elif state.should_stop is None:
            self.board.phase = Phase.EXIT
            state.should_stop = EX_OK
            self.loop.turn()

    def consumer_lost(self) -> None:
        """The consumer left its loop: the end, or a lost connection."""
        self.loop.detach()
        self.ledger.forget_unstarted()
        if self.stopping and state.should_stop is None:
            state.should_stop = EX_OK  # there is nothing to connect for

    # -- what others see -----------------------------------------------------------

    def _announce(self, phase_: Phase) -> None:
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
        self.report()
        self.board.close()
        self.bell.ring(_STOPPED)
        if self.embedded:
            self._left = True
            phase.detach()

    def report(self) -> None:
        """Write the final report, once."""
        if self.stopping and not self._reported:
            self._reported = True
            self.log(logging.WARNING, report(self.ledger, self.board))
            self.log.flush(LAST_WORDS)


def _stop_hearing() -> None:
    """In a forked child: its signals are its own."""
    try:
        signal.set_wakeup_fd(-1)
    except ValueError:
        pass  # forked from another thread


def _flush() -> None:
    sys.stderr.flush()
    sys.stdout.flush()


def bounded(call: Callable[[], None], seconds: float) -> bool:
    """Run ``call`` in a thread of its own for up to ``seconds``; whether it has ended."""
    done = native.Doorbell()

    def run() -> None:
        try:
            call()
        except Exception as exc:
            logger.error("%r", exc, exc_info=True)
        finally:
            done.ring()

    native.start_thread(run, "graceful-bounded")
    return bool(done.wait(seconds))
