"""Which worker runs which task, for brokers that have no claims (RabbitMQ first).

Such a broker gives back what a worker held, without saying what of it ran. So a start is noted
in the store, and its end, whichever way it comes. They are gathered and sent from a thread:
the loop of the worker never waits, and a short task costs nothing.

The end of a long run is sent a little later: who loses a connection may find then that the
acknowledgement went with it, and says that the run has ended before anybody starts it anew.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from celery_graceful.store.store import COMMAND_TIMEOUT, Store, StoreAway
from celery_graceful.system import native

__all__ = ["StartNotes"]

#: Seconds for which starts and ends are gathered. What starts and ends in it is never sent.
GATHER = 0.02

#: Seconds until ends that the store did not take are sent again, and how many are kept.
AGAIN, KEPT = 1.0, 10_000

#: Notes sent in one step.
BATCH = 500

#: Seconds after which a run is a long one, and for which its end is kept back.
LONG, KEEP = 2.0, 2.0

#: Seconds for which it is known that a run has ended whose acknowledgement may be lost.
REMEMBERED = 300.0

_STARTS, _ENDS = "1", "0"


class StartNotes:
    """The notes of one worker.

    Args:
        store: Where the workers are known.
        ttl: Seconds after which a note expires.
    """

    def __init__(self, store: Store, ttl: float) -> None:
        self.store = store
        self._ttl = int(ttl * 1000)
        self._lock = native.Lock()
        #: Run -> its task, and what there is to say of it.
        self._waiting: dict[str, tuple[str, str]] = {}
        #: Ends that are kept back: until when, task, run.
        self._kept: deque[tuple[float, str, str]] = deque()
        self._news = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Start the thread that sends them."""
        self._thread = threading.Thread(target=self._run, name="graceful-start-notes", daemon=True)
        self._thread.start()

    def end_thread(self, seconds: float) -> None:
        """The process goes on without a worker: end the thread, in up to ``seconds``."""
        self._ended = True
        self._news.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def start(self, task_id: str, run: str) -> None:
        """Note that a task starts; soon.

        Args:
            task_id: Of the task.
            run: ``<worker>|<delivery>``.
        """
        with self._lock:
            self._waiting[run] = (task_id, _STARTS)
        if not self._news.is_set():  # each task comes here, and setting it takes long
            self._news.set()

    def start_now(self, task_id: str, run: str) -> None:
        """Note that a task starts, before it does; for at most the time-out of the store."""
        try:
            self._send({run: (task_id, _STARTS)})
        except StoreAway:
            pass  # said there; if this run dies, it is not counted

    def end(self, task_id: str, run: str, *, later: bool = False, wake: bool = True) -> None:
        """Note that a task has ended, or was given back.

        Args:
            task_id: Of the task.
            run: ``<worker>|<delivery>``.
            later: It was a long one, and is about to be acknowledged.
            wake: False from a thread that the pool's monkey patching does not know.
        """
        with self._lock:
            if self._waiting.get(run, (task_id, _ENDS))[1] == _STARTS:
                del self._waiting[run]
                return
            if later:
                self._kept.append((time.monotonic() + KEEP, task_id, run))
            else:
                self._waiting[run] = (task_id, _ENDS)
        if wake:
            self._news.set()

    def remember(self, task_id: str, run: str, message: str, *, wake: bool = True) -> None:
        """Note that a task has ended for good, and that its acknowledgement may be lost.

        Args:
            task_id: Of the task.
            run: ``<worker>|<delivery>``.
            message: What its message is known by.
            wake: As for ``end``.
        """
        with self._lock:
            self._waiting[run] = (task_id, f"{int(REMEMBERED * 1000)}={message}")
        if wake:
            self._news.set()

    def flush(self, timeout: float | None = None, *, every: bool = True) -> None:
        """Send what has been gathered, here and now. From any thread.

        Args:
            timeout: Seconds that the store may take.
            every: Also the ends that are kept back.
        """
        with self._lock:
            now = time.monotonic()
            while self._kept and (every or self._kept[0][0] <= now):
                _, task_id, run = self._kept.popleft()
                self._waiting.setdefault(run, (task_id, _ENDS))
            batch, self._waiting = self._waiting, {}
        try:
            while batch:
                part = dict(list(batch.items())[:BATCH])
                self._send(part, timeout)
                for run in part:
                    del batch[run]
        except StoreAway:
            # A start that was not noted is a death that is not counted. An end that was not
            # noted would be a death that was none.
            ends = {run: note for run, note in batch.items() if note[1] != _STARTS}
            with self._lock:
                self._waiting = {**dict(list(ends.items())[-KEPT:]), **self._waiting}

    def _send(self, batch: dict[str, tuple[str, str]], timeout: float | None = None) -> None:
        keys, args = [], [str(self._ttl)]
        for run, (task_id, what) in batch.items():
            keys += [f"graceful:started:{task_id}", f"graceful:deaths:{task_id}"]
            args += [run, what]
        insist = timeout is not None
        self.store.run("starts", keys, args, timeout=timeout or COMMAND_TIMEOUT, insist=insist)

    def _run(self) -> None:
        while not self._ended:
            kept = self._kept
            self._news.wait(max(0.0, kept[0][0] - time.monotonic()) if kept else None)
            time.sleep(GATHER)
            self._news.clear()
            self.flush(every=False)
            if self._waiting and not self._ended:
                time.sleep(AGAIN)
                self._news.set()
