"""Prefork: the board is shared memory, SIGURG makes a child look at it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from billiard.common import _shutdown_cleanup
from billiard.pool import SIG_SOFT_TIMEOUT
from billiard.pool import Pool as BlockingPool
from billiard.pool import Worker as BlockingWorker
from celery.app.trace import build_tracer
from celery.concurrency.asynpool import AsynPool
from celery.concurrency.asynpool import Worker as AsynWorker
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_logger

from celery_graceful import cleanup, interrupt, phase
from celery_graceful.board import Board
from celery_graceful.monitors import traced
from celery_graceful.monitors.monitors import monitors_of
from celery_graceful.phase import Phase
from celery_graceful.pools import wakeup
from celery_graceful.pools.base import Adapter, watch_plain_task
from celery_graceful.request import GracefulRequest
from celery_graceful.run import current
from celery_graceful.trace_log import install_filter

__all__ = ["PreforkAdapter"]

logger = get_logger(__name__)


class PreforkAdapter(Adapter):
    """The main process's side."""

    @property
    def spawns(self) -> bool:  # type: ignore[override]
        return bool(getattr(self.worker, "pool_start_method", "fork") != "fork")

    def prepare(self) -> None:
        pool = self.worker.pool
        pool.Pool = GracefulAsynPool
        pool.BlockingPool = GracefulBlockingPool
        start = pool.on_start

        def on_start() -> None:
            start()
            pool.terminate_job = self._aimed(pool.terminate_job)
            handler = pool._pool._timeout_handler
            handler._trywaitkill = self._gently(handler._trywaitkill)

        pool.on_start = on_start

    def keep_jobs(self) -> None:
        pool = self.worker.pool
        start = pool.on_start

        def on_start() -> None:
            start()
            flush = pool.flush

            def flush_unclaimed() -> None:
                # Celery's would drop jobs that a child may start all the same.
                if self.ledger.claims is None and flush is not None:
                    flush()

            pool.flush = flush_unclaimed

        pool.on_start = on_start

    def pids(self) -> list[int]:
        """Of all children."""
        pool = getattr(self.worker.pool, "_pool", None)
        return [] if pool is None else [p.pid for p in list(pool._pool) if p.pid]

    def notify(self) -> None:
        for pid in self.pids():
            _kill(pid, wakeup.SIGNAL)

    def take_away(self, requests: Sequence[GracefulRequest]) -> None:
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

    def end_process(self, request: GracefulRequest, signum: int) -> None:
        if request.worker_pid:
            self.worker.pool.terminate_job(request.worker_pid, signum)

    def leave(self) -> None:
        for pid in self.pids():
            _kill(pid, signal.SIGKILL)

    @staticmethod
    def _aimed(terminate_job: Callable[..., Any]) -> Callable[..., Any]:
        """SIGTERM to one child means that child; to the group, the main process decides."""

        def aimed(pid: int, signum: int | None = None) -> None:
            if signum is None or signum == signal.SIGTERM:
                assert phase.board is not None
                phase.board.aim(pid)
                signum = wakeup.SIGNAL
            terminate_job(pid, signum)

        return aimed

    @staticmethod
    def _gently(trywaitkill: Callable[..., Any]) -> Callable[..., Any]:
        """Hard time limits: the child's ``finally`` blocks get their 0.1 s, as ever."""

        def gently(process: Any) -> None:
            assert phase.board is not None
            phase.board.aim(process.pid)
            _kill(process.pid, wakeup.SIGNAL)
            if not process._popen.wait(timeout=0.1):
                trywaitkill(process)

        return gently


def _kill(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass


# -- the child's side --------------------------------------------------------------


class _GracefulChild:
    """Mixed into billiard's ``Worker``, the object that a child process runs."""

    initargs: tuple[Any, ...]
    on_exit: Any

    def __call__(self) -> None:
        cleanup.enter("process")
        try:
            super().__call__()  # type: ignore[misc]
        finally:  # only where it could not start: else it has left
            cleanup.run()

    def after_fork(self) -> None:
        super().after_fork()  # type: ignore[misc]
        self.on_exit = partial(_leave, self.on_exit)
        # Billiard has set its own handlers in the line above; ours come after them.
        _install_child(*self.initargs)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


class _MaskedStart:
    """Mixed into billiard's ``Pool``: a child starts with SIGTERM blocked.

    It cannot die of a signal to the process group before it has its own handler.
    """

    def _create_worker_process(self, index: int) -> Any:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            return super()._create_worker_process(index)  # type: ignore[misc]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _AimedEnd:
    """Mixed into billiard's ``Pool``: where it ends one child, it means that child.

    An autoscaler shrinks the pool so.
    """

    def _create_worker_process(self, index: int) -> Any:
        process = super()._create_worker_process(index)  # type: ignore[misc]
        if phase.board is not None:
            phase.board.is_target(process.pid)  # a mark of somebody before it who had that id
        terminate = process.terminate

        def aimed() -> None:
            assert phase.board is not None
            phase.board.aim(process.pid)
            terminate()

        process.terminate = aimed
        return process


class GracefulAsynPool(_MaskedStart, _AimedEnd, AsynPool):
    """For brokers with an event loop."""

    class Worker(_GracefulChild, AsynWorker):
        pass

    def flush(self) -> None:
        """The connection is lost: what runs goes on, and its end must be heard.

        Celery before 5.6 forgets all jobs here, and which children are busy.
        """
        jobs = {number: job for number, job in self._cache.items() if job._accepted}
        super().flush()
        running = {number: job for number, job in jobs.items() if not job.ready()}
        self._cache.update(running)
        for job in running.values():
            process = job._write_to or job._scheduled_for
            if process is not None and process._is_alive():
                self._busy_workers.add(process.inqW_fd)

    def on_partial_read(self, job: Any, proc: Any) -> None:
        """A child is dead, and has not said yet that it began with ``job``: or was not heard.

        Two children that die together are seen one after the other; unheard, the job of the
        second would run again behind everybody's back.
        """
        if not job._accepted:
            self.process_flush_queues(proc)
            if job._accepted:
                return
        super().on_partial_read(job, proc)


class GracefulBlockingPool(_MaskedStart, _AimedEnd, BlockingPool):
    """For the others."""

    class Worker(_GracefulChild, BlockingWorker):
        pass


def _install_child(app: Any, hostname: str) -> None:
    if phase.board is None:
        board = Board.announced()
        if board is None:
            logger.error("No board in a spawned child: its tasks will see no interrupt")
            return
        phase.attach(board)
        _load_now(app)
    interrupt.forget_bell()
    install_filter()
    signal.signal(wakeup.SIGNAL, _on_wake)
    signal.signal(signal.SIGTERM, _on_term)
    if SIG_SOFT_TIMEOUT is not None:
        signal.signal(SIG_SOFT_TIMEOUT, _on_soft_limit)
    for name, task in app.tasks.items():
        if watch_plain_task(task):
            task.__trace__ = build_tracer(name, task, app.loader, hostname, app=app)
        traced.trace_with_check_in(task)
    traced.silence_sentry(monitors_of(app))
    traced.reports_first = True


def _load_now(app: Any) -> None:
    """What a forked child inherits: at the first end of a task there may be no time for it."""
    try:
        app.backend  # noqa: B018
        app.connection_for_write().transport  # noqa: B018
    except Exception as exc:  # who uses it is told
        logger.debug("Could not load it yet: %r", exc)


def _leave(on_exit: Callable[[int, int], Any] | None, pid: int, exitcode: int) -> None:
    """The child leaves; billiard's ``on_exit`` sends ``worker_process_shutdown``."""
    with _deaf():
        try:
            if on_exit is not None:
                on_exit(pid, exitcode)
        finally:
            cleanup.run(on_stuck=partial(os._exit, exitcode))


@contextmanager
def _deaf() -> Iterator[None]:
    """It is leaving already: being told so again must not cut its cleanups short."""
    told = [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, wakeup.SIGNAL]
    if SIG_SOFT_TIMEOUT is not None:
        told.append(SIG_SOFT_TIMEOUT)
    kept = [(number, signal.signal(number, signal.SIG_IGN)) for number in told]
    try:
        yield
    finally:
        for number, handler in kept:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _on_wake(signum: int, frame: Any) -> None:
    assert phase.board is not None
    if phase.board.is_target(os.getpid()):
        _shutdown_cleanup(signal.SIGTERM, frame)
    wakeup.look()


def _on_term(signum: int, frame: Any) -> None:
    """SIGTERM to the whole process group: the main process drains, the task goes on.

    When the main process leaves, it ends its children with the same signal.
    """
    assert phase.board is not None
    if phase.board.phase is Phase.EXIT or phase.board.is_target(os.getpid()):
        _shutdown_cleanup(signum, frame)


def _on_soft_limit(signum: int, frame: Any) -> None:
    """Celery's soft time limit, kept out of the worker's own code."""
    run = current()
    if run is None:
        raise SoftTimeLimitExceeded
    run.soft_limit_hit = True
    wakeup.look()
