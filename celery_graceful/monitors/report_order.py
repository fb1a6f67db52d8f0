"""Nothing after the end: a server would take it for the beginning of another run.

Heartbeats come from the main process, the end from the process that runs the task, over another
connection. So who reports the end says so first, in memory that they share, and lets a heartbeat
that is on its way arrive; and who is about to send one looks there. Where the main process
reports the end, of a task whose process it has told to leave, it waits until that is gone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from celery_graceful.monitors.check_in import CheckIn
from celery_graceful.system import native
from celery_graceful.timeline import worker_state

__all__ = ["Endings", "wait_for_death"]

#: Runs that are remembered in the process that reported their end.
KEPT = 1000

#: Seconds between two looks of who waits for a heartbeat to arrive.
PAUSE = 0.005


class Endings:
    """Whose end has been reported, or is being reported now."""

    def __init__(self) -> None:
        self._runs: dict[str, None] = {}
        self._lock = native.Lock()
        self._beats = 0

    def begins(self, check_in: CheckIn) -> None:
        """The run begins or goes on in this process."""
        run, board = _run(check_in), worker_state.board.value
        self._runs.pop(run, None)
        if board is not None and board.has_ended(os.getpid(), run):
            board.set_ended(os.getpid(), None)

    def ends(self, check_in: CheckIn) -> None:
        """Its end is about to be reported by this process."""
        self._runs[_run(check_in)] = None
        while len(self._runs) > KEPT:
            self._runs.pop(next(iter(self._runs)), None)
        if worker_state.board.value is not None:
            worker_state.board.value.set_ended(os.getpid(), _run(check_in))

    @contextmanager
    def beat(self, check_in: CheckIn) -> Iterator[bool]:
        """Around a heartbeat: whether it may be sent."""
        run, board = _run(check_in), worker_state.board.value
        self._count(1)
        try:
            ended = run in self._runs
            if board is not None and check_in.pid is not None:
                ended = ended or board.has_ended(check_in.pid, run)
            yield not ended
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._beats += change
            if worker_state.board.value is not None:
                worker_state.board.value.beat(self._beats > 0)

    @staticmethod
    def wait_for_beats(seconds: float) -> None:
        """Let a heartbeat of the main process arrive, for so long at most."""
        board = worker_state.board.value
        if board is not None:
            _wait_while(lambda: board.beating, seconds)


def wait_for_death(pid: int, seconds: float) -> None:
    """Let a child of the pool say its last, for so long at most."""
    _wait_while(lambda: native.is_alive(pid), seconds)


def _wait_while(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while condition() and time.monotonic() < end:
        time.sleep(PAUSE)


def _run(check_in: CheckIn) -> str:
    return f"{check_in.slug}\n{check_in.run}"
