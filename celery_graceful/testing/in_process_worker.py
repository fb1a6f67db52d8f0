"""This process is a worker's for the time of one delivery, as far as its task can see."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import celery
from celery.app import trace

from celery_graceful.phases import InterruptReason, Phase
from celery_graceful.pools import threads, wake_signal
from celery_graceful.runs import interrupt
from celery_graceful.runs.run import runs
from celery_graceful.system import native
from celery_graceful.system.process import Owner
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import Board
from celery_graceful.timeline.grace_period import Deadlines

__all__ = ["InProcessWorker"]

#: As Kubernetes gives it. Nobody holds these deadlines: a test may stand in a debugger.
_DEADLINES = Deadlines(grace=30.0, soft=20.0, hard=25.0, source="a test")
_PAST = Deadlines(grace=30.0, soft=0.0, hard=25.0, source="a test")


class InProcessWorker:
    """A worker of one delivery.

    Args:
        app: The Celery app.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._owner = Owner()
        self._board = Board.create()
        self._thread = threading.get_ident()
        self._is_over = threading.Event()

    def stop(self) -> None:
        """It was asked to stop."""
        self._board.begin_stop(_DEADLINES, InterruptReason.SHUTDOWN)

    @contextmanager
    def running(self, soft_deadline_after: float | None) -> Iterator[None]:
        """It runs a task, and its soft deadline passes so many seconds later, if ever."""
        # In a worker the request stays that of the delivery, whoever overrides ``__call__``.
        is_protected = getattr(celery.Task, "_stackprotected", False)
        if not is_protected:
            trace._install_stack_protection()
        worker_state.attach(self._board, self._owner)
        timer = threading.Thread(target=self._wait, args=[soft_deadline_after], daemon=True)
        handler: Any = None
        if soft_deadline_after is not None:
            self._has_signals = native.in_main_thread()
            if self._has_signals:
                handler = signal.signal(wake_signal.SIGNAL, wake_signal.look)
            timer.start()
        try:
            yield
        finally:
            self._is_over.set()
            if timer.ident is not None:
                timer.join()
            if handler is not None:
                signal.signal(wake_signal.SIGNAL, handler)
            self._owner.end()
            interrupt.end()
            if not is_protected:
                trace.reset_worker_optimizations(self._app)

    def _wait(self, seconds: float) -> None:
        if self._is_over.wait(seconds):
            return
        self._board.begin_stop(_PAST, InterruptReason.SHUTDOWN)
        self._board.enter(Phase.SOFT)
        interrupt.wake()
        if self._has_signals:
            # As in a worker: a signal is lost on who is just beginning to wait.
            pause = wake_signal.AGAIN
            signal.pthread_kill(self._thread, wake_signal.SIGNAL)
            while not self._is_over.wait(pause) and not self._board.has_heard(os.getpid()):
                pause *= wake_signal.LONGER
                signal.pthread_kill(self._thread, wake_signal.SIGNAL)
        else:
            threads.send_to(list(runs.values()))
