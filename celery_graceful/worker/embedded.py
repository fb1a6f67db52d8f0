"""An embedded worker: in a thread of a program that is something else, a test most often.

It is a guest in that process. It takes no signal handlers; it drains when its ``stop`` is called,
and gives back what still runs when its ``terminate`` is; and it leaves everything as it found it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from celery.app.trace import TraceInfo
from celery.bootsteps import RUN
from celery.worker import state

from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.monitors.registry import monitors_of
from celery_graceful.monitors.tracer import silence_sentry
from celery_graceful.runs import interrupt
from celery_graceful.system import native
from celery_graceful.task.trace_log import remove_filter
from celery_graceful.worker.drain import Drain
from celery_graceful.worker.giving_up import GivingUp
from celery_graceful.worker.successes import is_gathered, scatter

__all__ = ["EmbeddedWorker"]

#: What a worker sets on the tasks of its app.
_ON_TASKS = (
    "Request",
    "run",
    "__trace__",
    "apply",
    "retry",
    "replace",
    "on_replace",
    "add_to_chord",
)

#: Seconds between looks at what is about to be given back.
LOOK_AGAIN = 0.01


class EmbeddedWorker:
    """One embedded worker in its process.

    Made before the worker changes anything there, and in the thread that it runs in.

    Args:
        worker: Celery's ``WorkController``.
    """

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self._thread = native.thread_ident()
        self._lock = native.Lock()
        self._left = threading.Event()
        self._put_back = ExitStack()
        later = self._put_back.callback
        if not is_gathered(state.successful_requests):  # by another one, which may stay
            later(scatter, state.successful_requests)
        later(setattr, TraceInfo, "__init__", TraceInfo.__init__)

    def note(self, task: Any) -> None:
        """A task of the app, before anything of it is changed."""
        for name in _ON_TASKS:
            self._put_back.callback(_put_back, task, name, vars(task).get(name))

    def attend(
        self, drain: Drain, ledger: Ledger, giving_up: GivingUp, end: Callable[[], None]
    ) -> None:
        """Let the worker's ``stop`` and ``terminate`` drain it.

        Args:
            drain: Its drain.
            ledger: What it holds.
            giving_up: What becomes of its tasks at the hard deadline.
            end: Ends all that it began.
        """
        self.drain = drain
        self.ledger = ledger
        self.giving_up = giving_up
        self._end = end
        later = self._put_back.callback
        self._stop, self._terminate = self.worker.stop, self.worker.terminate
        for mine in (self.stop, self.terminate):
            later(delattr, self.worker, mine.__name__)
            setattr(self.worker, mine.__name__, mine)
        later(remove_filter)
        later(silence_sentry(monitors_of(self.worker.app)))

    def stop(self, in_sighandler: bool = False, exitcode: int | None = None) -> None:
        """Drain the worker and stop it; at the latest when its grace is over.

        As ever in the worker's own thread, which has drained when it comes here.
        """
        here = native.thread_ident() == self._thread
        if here or in_sighandler or self.worker.blueprint.state != RUN:
            self._stop(in_sighandler=in_sighandler, exitcode=exitcode)
            self.leave()
            return
        if exitcode is not None:
            self.worker.exitcode = exitcode
        self.drain.request_stop("stop()")
        if not self._left.wait(self.drain.deadlines.grace):
            self.leave()  # a task keeps the worker's thread

    def terminate(self, in_sighandler: bool = False) -> None:
        """Stop the worker at once; what runs goes back to its queue."""
        if self.ledger.active() and not self.giving_up.has_begun:
            self.drain.request_hard("terminate()")
            end = time.monotonic() + self.drain.deadlines.grace
            while not self.giving_up.has_begun and time.monotonic() < end:
                native.pause(LOOK_AGAIN)
            self.giving_up.wait()
        self._terminate(in_sighandler=in_sighandler)
        self.leave()

    def leave(self) -> None:
        """End what the worker began, and put back what it changed; once."""
        with self._lock:
            if self._left.is_set():
                return
            self._left.set()
        self._end()
        interrupt.end()
        if self.drain.stopping:  # the next worker of this process shall not see it
            state.should_stop = None
        if self.giving_up.has_begun:
            state.should_terminate = None
        self._put_back.close()


def _put_back(owner: Any, name: str, value: Callable[..., Any] | None) -> None:
    if value is not None:
        setattr(owner, name, value)
    elif name in vars(owner):
        delattr(owner, name)
