"""gevent and eventlet: an exception thrown into the waiting greenlet, by the hub."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import greenlet

from celery_graceful.pools import wake_signal
from celery_graceful.pools.base import InProcessAdapter
from celery_graceful.pools.handlers import Handlers
from celery_graceful.runs import run as _run
from celery_graceful.system import native
from celery_graceful.system.process import Owner

__all__ = ["GreenAdapter", "in_hub"]

#: Seconds that the loop leaves to tasks that were just told: those that look now and then, too.
TASKS_FIRST = 0.003


class GreenAdapter(InProcessAdapter):
    #: The thread whose hub runs the tasks.
    _main = 0

    def prepare(self, owner: Owner) -> None:
        super().prepare(owner)
        owner.fill(_run.get_greenlet, greenlet.getcurrent)
        self._main = native.thread_ident()
        self._has_signals = wake_signal.install()
        #: How often tasks were told, and how many times of these the hub has thrown what is due.
        self._told = self._thrown = 0
        #: That ``quiesce`` has made.
        self._more_room = 0
        #: Of the worker, which has all of them when the first task begins.
        self._handlers: Handlers | None = None
        #: Result backends of greenlets that have ended.
        self._backends: list[Any] = []

    def run_body(self, body: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._handlers is None and self._has_signals:
            self._handlers = Handlers(wakeup=True)
        app = self.worker.app
        # Celery makes one for each thread: here for each task, with connections of its own.
        own = None if app._backend_cache is not None else app._local
        if own is not None and self._backends and not hasattr(own, "backend"):
            own.backend = self._backends.pop()
        try:
            result = body(*args, **kwargs)
        finally:
            if self._handlers is not None:  # also where another task still has its own
                self._handlers.put_back()
        if own is not None and (backend := vars(own).pop("backend", None)) is not None:
            self._backends.append(backend)
        return result

    def hear_stop(self) -> None:
        super().hear_stop()
        if native.thread_ident() == self._main:
            self._throw_soon()

    def notify(self) -> None:
        super().notify()
        self._told += 1
        self.ring_loop()
        # A greenlet that computes lets nobody else run; the signal's handler runs in it.
        signal.pthread_kill(self._main, wake_signal.SIGNAL)
        self._listen()

    def tell_deaf(self) -> bool:
        # Not by who has heard: that one may have let another run, which computes as well.
        behind = self._thrown < self._told
        if behind:
            signal.pthread_kill(self._main, wake_signal.SIGNAL)
        return behind

    def frame_of(self, run: _run.Run) -> FrameType | None:
        # That which computes has no frame of its own: it is its thread's.
        waits: FrameType | None = getattr(run.greenlet, "gr_frame", None)
        return waits or sys._current_frames().get(self._main)

    def on_loop(self) -> None:
        told = self._told
        self._throw_soon()
        in_hub(setattr, self, "_thrown", told)
        is_new = self._thrown != told
        self._let_others_run(TASKS_FIRST if is_new and _run.runs else 0)

    @staticmethod
    def _throw_soon() -> None:
        for run in list(_run.runs.values()):
            in_hub(_throw, run)

    @staticmethod
    def _let_others_run(seconds: float) -> None:
        """The tasks that were just told come before the loop's own work."""
        if native.is_gevent():
            from gevent import sleep
        else:
            from eventlet import sleep
        sleep(seconds)

    def _room(self) -> tuple[Any, Any]:
        """Celery's pool of greenlets, and the semaphore of its places."""
        pool = self.worker.pool._pool
        return pool, pool._semaphore if native.is_gevent() else pool.sem

    def quiesce(self) -> None:
        # The consumer may be waiting for room in the pool, to start what has been given
        # back meanwhile. Nothing is started any more, so there may be room. (Not by ``grow``:
        # before Celery 5.7 nobody who waits already sees the room that it makes.)
        pool, room = self._room()
        more = self.worker.consumer.initial_prefetch_count + 1
        if not native.is_gevent():
            pool.size += more  # else its ``waitall`` would wait for ever
        for _ in range(more):
            room.release()
        self._more_room = more

    def resume(self) -> None:
        # What runs has its place, and nothing else was started: all of it is there.
        pool, room = self._room()
        more, self._more_room = self._more_room, 0
        if not native.is_gevent():
            pool.size -= more
        for _ in range(more):
            room.acquire(blocking=False)


def _throw(run: _run.Run) -> None:
    # Nothing else runs while the hub does: what is due now is due when it lands.
    due = run.take_due(blocking=False)
    if due is not None:
        run.greenlet.throw(_run.make(due, run))


def in_hub(call: Callable[..., Any], *args: Any) -> None:
    """Call from the hub, soon; from a greenlet of the same hub."""
    if native.is_gevent():
        from gevent import get_hub

        get_hub().loop.run_callback(call, *args)
    else:
        from eventlet.hubs import get_hub

        get_hub().schedule_call_global(0, call, *args)
