"""Solo: tasks run in the main thread (in that of an embedded worker), inside the event loop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from celery_graceful.pools import wake_signal
from celery_graceful.pools.base import InProcessAdapter
from celery_graceful.pools.handlers import Handlers
from celery_graceful.pools.threads import send_to
from celery_graceful.runs import log_locks
from celery_graceful.runs.run import runs
from celery_graceful.system import native
from celery_graceful.system.process import Owner
from celery_graceful.timeline import worker_state

__all__ = ["SoloAdapter"]


class SoloAdapter(InProcessAdapter):
    #: Celery acknowledges through the loop: what is acknowledged before it starts would be so at
    #: its end, and by then a copy may have been sent.
    blocks_loop = True
    may_keep_loop = True
    one_at_a_time = True

    def prepare(self, owner: Owner) -> None:
        super().prepare(owner)
        log_locks.install()
        self._main = threading.get_ident()
        self._in_body = False
        #: Who uses the broker connection: the main thread outside of tasks, or the watch.
        self._connection_lock = native.Lock()
        self._has_signals = wake_signal.install()
        #: Of the worker, which has all of them when the first task begins.
        self._handlers: Handlers | None = None

    def notify(self) -> None:
        super().notify()
        board = worker_state.board.value
        if self._has_signals and board is not None:
            board.set_heard(os.getpid(), False)
            signal.pthread_kill(self._main, wake_signal.SIGNAL)
            self._listen()
        # Embedded, or of a pool that waits here for what it runs elsewhere.
        here = self._main if self._has_signals else None
        send_to([run for run in list(runs.values()) if run.ident != here])

    def tell_deaf(self) -> bool:
        board = worker_state.board.value
        if board is None or board.has_heard(os.getpid()):
            return False
        signal.pthread_kill(self._main, wake_signal.SIGNAL)
        return True

    def run_body(self, body: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        # Elsewhere, where a pool may run it, handlers can be neither asked for nor set.
        here = self._has_signals and threading.get_ident() == self._main
        if here and self._handlers is None:
            self._handlers = Handlers(wakeup=True)
        self._in_body = True
        try:
            return body(*args, **kwargs)
        finally:
            if here and self._handlers is not None:
                self._handlers.put_back()
            with self._connection_lock:
                self._in_body = False

    def stuck_loop(self, quiesce: Callable[[], None]) -> None:
        # The loop waits for the task, so its connection is free, as long as the task lasts. What
        # is read meanwhile is not started only if it is released.
        with self._connection_lock:
            if self._in_body:
                with self.ledger.requeue.at_once():
                    quiesce()
                    if self.ledger.releasing:
                        self.read_pending()
                        quiesce()
                        self.ledger.keep_claims()  # claimed along with the task, and not read yet
