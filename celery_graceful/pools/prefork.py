"""Prefork: the board is shared memory, SIGURG makes a child look at it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from billiard.pool import CLOSE, RUN
from celery.utils.log import get_logger
from celery.worker.request import Request
from kombu.asynchronous import get_event_loop

from celery_graceful.deliveries.custom_strategies import has_own_strategy
from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.request import GracefulRequest
from celery_graceful.pools import wake_signal
from celery_graceful.pools.base import Adapter
from celery_graceful.pools.processes import graceful
from celery_graceful.system import native
from celery_graceful.system.process import Owner
from celery_graceful.timeline import worker_state

__all__ = ["PreforkAdapter"]

logger = get_logger(__name__)

#: Seconds between looks at the loop's timers while children leave; and to wait for the last one.
TIMERS, LAST = 0.5, 1.0


#: Seconds that a child gets to say where it stands, and between looks whether it has.
PATIENCE, LOOK_AGAIN = 0.1, 0.002


class PreforkAdapter(Adapter):
    """The main process's side."""

    #: Calls of the pool are looked at: some are of many deliveries.
    _hands_over = False

    @staticmethod
    def spawns(worker: Any) -> bool:
        return bool(getattr(worker, "pool_start_method", "fork") != "fork")

    def prepare(self, owner: Owner) -> None:
        pool = self.worker.pool
        pool.Pool, pool.BlockingPool = graceful(pool.Pool), graceful(pool.BlockingPool)
        pool.options["on_put_back"] = self.ring_loop
        start = pool.on_start

        def on_start() -> None:
            start()
            pool.terminate_job = self._aimed(pool.terminate_job)
            handler = pool._pool._timeout_handler
            if handler is not None:
                handler._trywaitkill = self._gently(handler._trywaitkill)

        pool.on_start = on_start
        pool.on_stop = self._without_delay(pool.on_stop)

    def _without_delay(self, on_stop: Callable[[], None]) -> Callable[[], None]:
        """Celery's waits half a second for a thread that sleeps, also where nothing is left to do:
        it fires the loop's timers while children leave. Here it is woken when they have.
        """

        def stop() -> None:
            pool = self.worker.pool._pool
            if pool is not None and pool._state in (RUN, CLOSE) and not pool._cache:
                hub, over = get_event_loop(), threading.Event()
                timers = threading.Thread(
                    target=_fire_timers, args=(hub, over), name="graceful-timers", daemon=True
                )
                pool.close()
                timers.start()
                try:
                    pool.join()
                finally:
                    over.set()
                    timers.join(LAST)
                self.worker.pool._pool = None
            on_stop()

        return stop

    def adopt(self, task: Any) -> None:
        if has_own_strategy(task) and not self._hands_over:
            self._hands_over = True
            pool = self.worker.pool
            pool.apply_async = self._with_custom_strategies(pool.apply_async)

    def _with_custom_strategies(self, apply_async: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(apply_async)
        def guarded(
            target: Callable[..., Any], args: Any = None, kwargs: Any = None, **options: Any
        ) -> Any:
            callback = options.get("callback")
            if isinstance(getattr(callback, "__self__", None), GracefulRequest):
                return apply_async(target, args, kwargs, **options)
            return self.custom_strategies.around(apply_async, target, args, kwargs, **options)

        return guarded

    def keep_jobs(self) -> None:
        pool = self.worker.pool
        start = pool.on_start

        def on_start() -> None:
            start()
            flush = pool.flush

            def flush_unkept() -> None:
                # Celery's would drop jobs that a child may start all the same.
                if self.ledger.claims is not None:
                    self._connection_lost(_none)
                elif self.ledger.requeue.is_amqp:
                    self._connection_lost(self._comes_again)
                elif flush is not None:
                    flush()

            pool.flush = flush_unkept

        pool.on_start = on_start

    def take_back(self) -> None:
        take_back = getattr(getattr(self.worker.pool, "_pool", None), "take_back", None)
        if take_back is not None:
            take_back(self._not_handed_over)

    def _connection_lost(self, may_go: Callable[[Any], bool]) -> None:
        connection_lost = getattr(self.worker.pool._pool, "connection_lost", None)
        if connection_lost is not None:
            connection_lost(may_go)

    def _comes_again(self, job: Any) -> bool:
        """Whether the broker delivers again what no child was given, once it is struck off."""
        request = _owner(job)
        if isinstance(request, GracefulRequest):
            return self.ledger.not_handed_over(request)
        return isinstance(request, Request)

    def _not_handed_over(self, job: Any) -> bool:
        request = _owner(job)
        return isinstance(request, GracefulRequest) and self.ledger.not_handed_over(request)

    def pids(self) -> list[int]:
        """Of all children."""
        pool = getattr(self.worker.pool, "_pool", None)
        return [] if pool is None else [p.pid for p in list(pool._pool) if p.pid]

    def notify(self) -> None:
        for pid in self.pids():
            _tell(pid)
        self._listen()

    def tell_deaf(self) -> bool:
        board = worker_state.board.value
        deaf = [] if board is None else [pid for pid in self.pids() if not board.has_heard(pid)]
        for pid in deaf:
            _kill(pid, wake_signal.SIGNAL)
        return bool(deaf)

    def stack_of(self, request: HeldMessage, until: float) -> str:
        pid, board = request.worker_pid, worker_state.board.value
        if not pid or board is None:
            return ""
        board.ask_stack(pid)
        _kill(pid, wake_signal.SIGNAL)
        until = min(until, time.monotonic() + PATIENCE)
        while time.monotonic() < until:
            said = board.take_stack(pid)
            if said is not None:
                return said
            native.pause(LOOK_AGAIN)
        return ""

    def take_away(self, requests: Sequence[HeldMessage]) -> None:
        pool = getattr(self.worker.pool, "_pool", None)
        if pool is not None:
            pool._worker_handler.close()  # no new children
            for process in pool._pool:
                process._controlled_termination = True  # no news for the log
        running = {r.worker_pid for r in requests if r.worker_pid}
        # A child that was handed a task and has not said so yet cannot be told from an idle
        # one; all of them leave with the worker anyway.
        for pid in set(self.pids()) if len(running) < len(requests) else running:
            _kill(pid, signal.SIGKILL)

    def end_process(self, request: HeldMessage, signum: int) -> None:
        if request.worker_pid:
            self.worker.pool.terminate_job(request.worker_pid, signum)

    def leave(self) -> None:
        for pid in self.pids():
            _kill(pid, signal.SIGKILL)

    def _aimed(self, terminate_job: Callable[..., Any]) -> Callable[..., Any]:
        """SIGTERM to one child means that child; to the group, the main process decides."""

        def aimed(pid: int, signum: int | None = None) -> None:
            if signum is None or signum == signal.SIGTERM:
                assert worker_state.board.value is not None
                worker_state.board.value.aim(pid)
                worker_state.board.value.set_heard(pid, False)
                self._listen()
                signum = wake_signal.SIGNAL
            elif signum == signal.SIGHUP:
                assert worker_state.board.value is not None
                worker_state.board.value.aim(pid)
            terminate_job(pid, signum)

        return aimed

    @staticmethod
    def _gently(trywaitkill: Callable[..., Any]) -> Callable[..., Any]:
        """Hard time limits: the child's ``finally`` blocks get their 0.1 s, as ever."""

        def gently(process: Any) -> None:
            assert worker_state.board.value is not None
            worker_state.board.value.aim(process.pid)
            _kill(process.pid, wake_signal.SIGNAL)
            if not process._popen.wait(timeout=0.1):
                trywaitkill(process)

        return gently


def _owner(job: Any) -> Any:
    return getattr(job._error_callback, "__self__", None)


def _none(job: Any) -> bool:
    return False


def _tell(pid: int) -> None:
    if worker_state.board.value is not None:
        worker_state.board.value.set_heard(pid, False)
    _kill(pid, wake_signal.SIGNAL)


def _fire_timers(hub: Any, over: threading.Event) -> None:
    while hub is not None and not over.wait(TIMERS):
        try:
            hub.fire_timers()
        except Exception:
            logger.warning("A timer failed while the pool stopped", exc_info=True)


def _kill(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass
