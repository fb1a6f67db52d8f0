"""The watch over a drain: a real thread that holds the deadlines.

It needs neither the event loop nor the main thread, so it also sees to a worker whose loop
hangs. It never waits for anything that may not come: what could take long, a broker's answer
or a log, is done in a thread of its own, for a bounded time.
"""

from __future__ import annotations

import logging
import math
import signal
import time
import traceback
from collections.abc import Callable

from celery.platforms import EX_OK
from celery.worker import state

from celery_graceful.checkpoints.checkpoint import DELIVERY
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.membership.broker_servers import Servers
from celery_graceful.phases import Phase
from celery_graceful.pools import Adapter
from celery_graceful.runs import run as _run
from celery_graceful.system import native
from celery_graceful.system.log_thread import LogThread
from celery_graceful.system.native import bounded
from celery_graceful.worker.drain import HARD, QUIET, RESUME, STOP, STOPPED, Drain
from celery_graceful.worker.giving_up import GivingUp
from celery_graceful.worker.last_stacks import LastStacks
from celery_graceful.worker.loop import Loop
from celery_graceful.worker.quiesce import Quiesce
from celery_graceful.worker.report import listed
from celery_graceful.worker.revocation import Revocations
from celery_graceful.worker.signal_pipe import SignalPipe

__all__ = ["Watch"]

#: Seconds that the loop gets for its part before the watch tries without it.
LOOP_PATIENCE = 0.3

#: Seconds that the process gets to end by itself when nothing but threads with tasks that were
#: given up is left of it.
LAST_THREADS = 0.3

#: Seconds at most between the hard deadline and the last resort.
LAST_RESORT = 3.0

#: Seconds that the watch rests after an error of its own, so that it does not spin.
AFTER_ERROR = 0.1

#: Seconds in which the interpreter is the tasks' that were just told to stop. Without, the watch
#: keeps it for up to 5 ms (``sys.getswitchinterval``) while it writes its log.
TASKS_FIRST = 0.003

#: What others set in ``celery.worker.state`` to end a worker, as Celery's fixtures do; and seconds
#: between looks at it.
FLAGS, LOOK_AT_FLAGS = ("should_stop", "should_terminate"), 0.1

#: Seconds in which results of children that were just taken away may still arrive.
LAST_RESULTS = 0.05


class Watch:
    """The watch over one drain.

    Args:
        drain: What was asked for.
        loop: The worker's loop.
        ledger: What it holds.
        adapter: Of its pool.
        places: Where it claims.
        quiesce: The loop's part of the drain.
        revocations: Running tasks that were revoked.
        giving_up: What becomes of tasks at the hard deadline.
        signal_pipe: Signals, numbers of which are rung here.
        stacks: Where tasks stand that are about to be given up.
        leave: The last resort.
        log: Holds up nobody.
        embedded: Nobody sends signals; Celery's flags are all that says that it has to end, and a
            task may keep its loop from looking at them.
    """

    def __init__(
        self,
        drain: Drain,
        loop: Loop,
        ledger: Ledger,
        adapter: Adapter,
        places: Servers,
        quiesce: Quiesce,
        revocations: Revocations,
        giving_up: GivingUp,
        signal_pipe: SignalPipe,
        stacks: LastStacks,
        leave: Callable[[], None],
        log: LogThread,
        *,
        embedded: bool = False,
    ) -> None:
        self.drain = drain
        self.board = drain.board
        self.deadlines = drain.deadlines
        self.loop = loop
        self.ledger = ledger
        self.adapter = adapter
        self.places = places
        self.quiesce = quiesce
        self.revocations = revocations
        self.giving_up = giving_up
        self.signal_pipe = signal_pipe
        self.leave = leave
        self.log = log
        self._embedded = embedded
        self._hears_hangup = False
        self._begun = self._helped = self._insisted = self._prepared = self._left = False
        self._sigints = 0
        self.stacks = stacks
        self._last_resort_at = float("inf")
        self._thread: native.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = native.start_thread(self._watch, "graceful-watch")

    def hear_hangup(self) -> None:
        """SIGHUP is ours to handle."""
        self._hears_hangup = True

    def end(self, seconds: float) -> None:
        """The process goes on without a worker: end the thread, in up to ``seconds``."""
        self._left = True
        self.drain.ring()
        if self._thread is not None:
            self._thread.wait(seconds)
        self.drain.end()

    # -- the clock -----------------------------------------------------------------

    def _watch(self) -> None:
        while not self._left:
            rung = self.drain.bell.wait(self._seconds_to_next())
            try:
                self._step(rung)
            except Exception:
                self.log(
                    logging.CRITICAL, "The watch over the drain failed: %s", traceback.format_exc()
                )
                native.pause(AFTER_ERROR)
                if self.drain.stopping and time.monotonic() > self.board.hard_at:
                    self._leave_by_force()

    def _hear_signals(self, rung: bytes) -> None:
        """The handlers have seen the same, where the main thread could run them."""
        self._sigints += rung.count(signal.SIGINT)
        if signal.SIGHUP in rung and self._hears_hangup:
            self.drain.on_hangup()
        if signal.SIGTERM in rung:
            self.drain.request_stop("SIGTERM")
        if self._sigints:
            self.drain.request_stop("SIGINT")
        if signal.SIGQUIT in rung:
            self.drain.request_hard("SIGQUIT")
        if self._sigints > 1:
            self._sigints = 1
            self.drain.request_hard("a second SIGINT")

    def _step(self, rung: bytes) -> None:
        self._hear_signals(rung)
        if self._looks_at_flags and self.ledger.active():
            for name in FLAGS:
                flag = getattr(state, name)
                if flag is not None and flag is not False:  # 0 is a status to end with
                    self.drain.request_stop(f"celery.worker.state.{name}")
        self._check_soft_limits()
        self.revocations.check()
        if time.monotonic() >= self.adapter.again_at:
            self.adapter.tell_again()
        if QUIET in rung:
            self.loop.ring()
            self.log(
                logging.WARNING,
                "Quiet, asked for by %s: fetching stops, tasks go on",
                self.drain.asked_by,
            )
            self.drain.announce(Phase.QUIET)
        if RESUME in rung:
            self.loop.ring()
            self.log(
                logging.WARNING,
                "Not quiet any more, asked for by %s: it fetches",
                self.drain.asked_by,
            )
            self.drain.announce(Phase.RUNNING)
        if not self.drain.stopping:
            return
        now = time.monotonic()
        hard = HARD in rung or now >= self.board.hard_at
        # Handler and watch may both have heard a SIGQUIT: then HARD may be rung before STOP.
        if not self._begun and (hard or STOP in rung):
            self._begin()
        if not self._helped and now >= self.board.requested_at + LOOP_PATIENCE:
            self._without_loop()
        if self.board.phase < Phase.SOFT and now >= self.board.soft_at and not hard:
            self._soften()
        if not self._insisted and now >= self.board.limit_again_at:
            self._insisted = True
            self.adapter.notify()
        if not self.stacks.done and not hard and now >= self.stacks.due_at:
            self.stacks.write_soon()
        if not self._prepared and now >= self._prepare_at:
            self._prepared = True
            self.giving_up.prepare()
        if not self.giving_up.has_begun and hard:
            with self.giving_up.begin():
                self._harden()
        if STOPPED in rung and self.giving_up.has_begun:
            self._last_resort_at = min(self._last_resort_at, now + LAST_THREADS)
        if now >= self._last_resort_at:
            self._leave_by_force()

    @property
    def _looks_at_flags(self) -> bool:
        return self._embedded and not self.drain.stopping

    def _seconds_to_next(self) -> float | None:
        moments = [
            run.soft_limit_at
            for run in list(_run.runs.values())
            if run.soft_limit_at is not None and not run.soft_limit_hit
        ]
        moments += [self.revocations.next_at(), self.adapter.again_at]
        if self._looks_at_flags:
            moments.append(time.monotonic() + LOOK_AT_FLAGS)
        if self.drain.stopping:
            if not self._helped:
                moments.append(self.board.requested_at + LOOP_PATIENCE)
            if self.board.phase < Phase.SOFT:
                moments.append(self.board.soft_at)
            if not self._insisted:
                moments.append(self.board.limit_again_at)
            if not self._prepared:
                moments.append(self._prepare_at)
            if not self.stacks.done:
                moments.append(self.stacks.due_at)
            if not self.giving_up.has_begun:
                moments.append(self.board.hard_at)
            moments.append(self._last_resort_at)
        moment = min(moments)
        return None if math.isinf(moment) else max(0.0, moment - time.monotonic())

    @property
    def _prepare_at(self) -> float:
        return self.board.hard_at - self.giving_up.lead

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
        self.places.stops()
        native.pause(TASKS_FIRST)
        self.signal_pipe.start_clock()
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
            self.drain.asked_by,
            self.deadlines.grace,
            self.deadlines.source,
            self.deadlines.soft,
            self.deadlines.hard,
            listed(self.ledger.active()),
        )
        if self.drain.restart.asked_for:
            self.log(logging.WARNING, "After that the same command starts anew")
        self.drain.announce(Phase.QUIET)

    def _soften(self) -> None:
        self.board.enter(Phase.SOFT)
        self.adapter.notify()
        active = self.ledger.active()
        if active:
            self.log(
                logging.WARNING,
                "Soft deadline: %.3g s left for %s",
                self.board.hard_at - time.monotonic(),
                listed(active),
            )
        self.drain.announce(Phase.SOFT)

    def _harden(self) -> None:
        """HARD: take away what still runs and give its message back."""
        room = self.deadlines.grace - self.deadlines.hard
        active = self.ledger.active()
        if active:
            left = self.ledger.leave_to_successors()
            if left:
                self.log(logging.ERROR, "Hard deadline: giving up %s", listed(left))
                self.stacks.write_now(room)
            self.adapter.take_away(active)
            self.places.settle()  # the loop may be stuck
            native.pause(min(LAST_RESULTS, room / 10))
        heard = self.quiesce.done
        given_up = self.ledger.give_up(heard=heard)
        self.board.taken_away.update(r.request_dict[DELIVERY] for r in given_up)
        # Not before: what goes back must not end by its limit as well. Now that ends nothing but
        # the code that still runs here.
        self.board.enter(Phase.HARD)
        if given_up:
            self.adapter.notify()
        self._last_resort_at = min(
            self._last_resort_at,
            time.monotonic() + min(LAST_RESORT, self.deadlines.last_resort - self.deadlines.hard),
        )
        self.board.leave_at(self._last_resort_at)
        self.giving_up.give_up(given_up, self.stacks.point_of)
        self.board.enter(Phase.EXIT)
        state.should_terminate = EX_OK
        self.loop.ring()
        self.drain.announce(Phase.HARD)

    def _without_loop(self) -> None:
        """The loop has not come to its part: help where that is possible."""
        self._helped = True
        if self.loop.alive and not self.quiesce.done:
            bounded(lambda: self.adapter.stuck_loop(self.quiesce.fetch_no_more), LOOP_PATIENCE)

    def _leave_by_force(self) -> None:
        if not self._left:
            self._left = True
            self.leave()
