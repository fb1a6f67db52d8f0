"""Which worker runs which task, for brokers that have no claims (RabbitMQ first).

Such a broker gives back what a worker held, without saying what of it ran. So a start is noted
in the store, and its end, whichever way it comes. They are gathered and sent from a thread:
the loop of the worker never waits, and a short task costs nothing.
"""

from __future__ import annotations

import threading
import time

from celery_graceful import native
from celery_graceful.store import COMMAND_TIMEOUT, Store, StoreAway

__all__ = ["Starts"]

#: Seconds for which starts and ends are gathered. What starts and ends in it is never sent.
GATHER = 0.02

#: Seconds until ends that the store did not take are sent again, and how many are kept.
AGAIN, KEPT = 1.0, 10_000

#: Notes sent in one step.
BATCH = 500


class Starts:
    """The notes of one worker.

    Args:
        store: Where the workers are known.
        ttl: Seconds after which a note expires.
    """

    def __init__(self, store: Store, ttl: float) -> None:
        self.store = store
        self._ttl = int(ttl * 1000)
        self._lock = native.Lock()
        #: Run -> its task, and whether it starts or has ended.
        self._waiting: dict[str, tuple[str, bool]] = {}
        self._news = threading.Event()

    def run(self) -> None:
        """Start the thread that sends them."""
        threading.Thread(target=self._run, name="graceful-starts", daemon=True).start()

    def start(self, task_id: str, run: str) -> None:
        """Note that a task starts; soon.

        Args:
            task_id: Of the task.
            run: ``<worker>|<delivery>``.
        """
        with self._lock:
            self._waiting[run] = (task_id, True)
        self._news.set()

    def start_now(self, task_id: str, run: str) -> None:
        """Note that a task starts, before it does; for at most the time-out of the store."""
        try:
            self._send({run: (task_id, True)})
        except StoreAway:
            pass  # said there; if this run dies, it is not counted

    def end(self, task_id: str, run: str, *, wake: bool = True) -> None:
        """Note that a task has ended, or was given back.

        Args:
            task_id: Of the task.
            run: ``<worker>|<delivery>``.
            wake: False from a thread that the pool's monkey patching does not know.
        """
        with self._lock:
            if self._waiting.get(run, (task_id, False))[1]:
                del self._waiting[run]
                return
            self._waiting[run] = (task_id, False)
        if wake:
            self._news.set()

    def flush(self, timeout: float | None = None) -> None:
        """Send what has been gathered, here and now. From any thread."""
        with self._lock:
            batch, self._waiting = self._waiting, {}
        try:
            while batch:
                now = dict(list(batch.items())[:BATCH])
                self._send(now, timeout)
                for run in now:
                    del batch[run]
        except StoreAway:
            # A start that was not noted is a death that is not counted. An end that was not
            # noted would be a death that was none.
            ends = {run: note for run, note in batch.items() if not note[1]}
            with self._lock:
                self._waiting = {**dict(list(ends.items())[-KEPT:]), **self._waiting}

    def _send(self, batch: dict[str, tuple[str, bool]], timeout: float | None = None) -> None:
        keys, args = [], [str(self._ttl)]
        for run, (task_id, starts) in batch.items():
            keys += [f"graceful:started:{task_id}", f"graceful:deaths:{task_id}"]
            args += [run, "1" if starts else "0"]
        insist = timeout is not None
        self.store.run("starts", keys, args, timeout=timeout or COMMAND_TIMEOUT, insist=insist)

    def _run(self) -> None:
        while True:
            self._news.wait()
            time.sleep(GATHER)
            self._news.clear()
            self.flush()
            if self._waiting:
                time.sleep(AGAIN)
                self._news.set()
