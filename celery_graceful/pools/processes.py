"""Billiard's pools of processes, with what a drain needs of them.

``graceful`` derives such a pool from any other: Celery's own, or one that somebody else has
derived from them.
"""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Callable
from typing import Any

# The first fork imports them, and what is imported is looked through before the next one.
import billiard.popen_fork
import billiard.sharedctypes
import billiard.synchronize  # noqa: F401
from billiard.einfo import ExceptionInfo
from celery.concurrency.asynpool import AsynPool, _get_job_writer

from celery_graceful.exceptions import TaskInterrupted
from celery_graceful.pools import inherited_locks
from celery_graceful.pools.child import REFUSED, graceful_worker
from celery_graceful.pools.jobs import MakesJobs, can_make_jobs
from celery_graceful.pools.pipes import WritesAtOnce, reads_ahead
from celery_graceful.system.garbage import freeze_once
from celery_graceful.timeline import worker_state

__all__ = ["graceful"]

#: Seconds until a child that has closed its files, and has not ended yet, is looked at again.
LOOK_AGAIN = 0.01

#: Seconds that children get to read what has been written to them in part, when the connection is
#: lost.
WRITING = 0.5


def graceful(cls: Any) -> Any:
    """A pool like ``cls`` whose children hear of the drain, and refuse what they need not begin."""
    if issubclass(cls, _GracefulPool):
        return cls
    own = {"Worker": graceful_worker(cls.Worker)}
    if not issubclass(cls, AsynPool):
        return type(cls.__name__, (_GracefulPool, cls), own)
    own["ResultHandler"] = reads_ahead(cls.ResultHandler)
    jobs = (MakesJobs,) if can_make_jobs(cls) else ()
    return type(cls.__name__, (_GracefulAsynPool, *jobs, cls), own)


def _nobody() -> None:
    pass


class _GracefulPool:
    """Mixed into billiard's ``Pool``, in the main process.

    Args:
        on_put_back: Called when a job that was handed to a child waits for another one.
    """

    _cache: dict[int, Any]
    _putlock: Any

    def __init__(
        self, *args: Any, on_put_back: Callable[[], None] = _nobody, **kwargs: Any
    ) -> None:
        self.on_put_back = on_put_back
        super().__init__(*args, **kwargs)

    def join(self) -> None:
        super().join()  # type: ignore[misc]
        self.on_put_back = _nobody  # billiard keeps a joined pool for good; not the worker with it

    def _create_worker_process(self, index: int) -> Any:
        inherited_locks.look()
        freeze_once()
        # It cannot die of a signal to the process group before it has its own handler.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            process = super()._create_worker_process(index)  # type: ignore[misc]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if worker_state.board.value is not None:
            worker_state.board.value.is_target(
                process.pid
            )  # a mark of somebody before it who had that id
        terminate = process.terminate

        def aimed() -> None:
            """Where the pool ends one child, it means that one; an autoscaler shrinks it so."""
            assert worker_state.board.value is not None
            worker_state.board.value.aim(process.pid)
            terminate()

        process.terminate = aimed
        return process

    def create_result_handler(self, **kwargs: Any) -> Any:
        handler = super().create_result_handler(**kwargs)  # type: ignore[misc]
        handler.state_handlers[REFUSED] = self._on_refused
        return handler

    def _on_refused(self, number: int, inqW_fd: int) -> None:
        job = self._cache.pop(number, None)
        if job is not None and not job.ready():
            self._putlock.release()
            job._set(None, (False, _refusal()))


class _GracefulAsynPool(WritesAtOnce, _GracefulPool):
    """Mixed into Celery's ``AsynPool``, which brokers with an event loop have."""

    outbound_buffer: Any
    _active_writers: set[Any]
    _busy_workers: set[int]
    _fileno_to_inq: dict[int, Any]
    _maxtasksperchild: int | None
    _result_handler: Any

    @classmethod
    def _help_stuff_finish(cls, pool: Any) -> None:
        """Leave what no child has read where it is.

        billiard empties the pipes for a thread that may wait to write to them, and this pool has
        none. A child that leaves may have read the half of a message: the other half is a
        traceback at the end of a clean stop, or a read that never ends.
        """

    # -- jobs ------------------------------------------------------------------------

    def take_back(self, may_go: Callable[[Any], bool]) -> None:
        """Strike jobs that no child has been handed off the books, if they ``may_go``."""
        kept = []
        while self.outbound_buffer:
            job = self.outbound_buffer.popleft()
            if may_go(job):
                job.discard()
            else:
                kept.append(job)
        self.outbound_buffer.extend(kept)

    # -- a connection that is lost -----------------------------------------------------

    def connection_lost(self, may_go: Callable[[Any], bool]) -> None:
        """In place of ``flush``: all goes on but jobs that no child was given, if they ``may_go``.

        The loop has forgotten who waits to write: that is done here, as far as a child reads on,
        or when the loop begins again.
        """
        self.take_back(may_go)
        end = time.monotonic() + WRITING
        for job, writer in self._writers():
            poller = select.poll()
            poller.register(job._write_to.inqW_fd, select.POLLOUT)
            try:
                while poller.poll(max(0.0, end - time.monotonic()) * 1000):
                    next(writer)
            except (StopIteration, OSError):  # it is written, or nobody will read it
                pass

    def _writers(self) -> list[tuple[Any, Any]]:
        """Jobs that children have got a part of, and who writes the rest."""
        writers = [(job, _get_job_writer(job)) for job in list(self._cache.values())]
        return [
            (job, writer)
            for job, writer in writers
            if writer in self._active_writers and job._write_to and job._write_to._is_alive()
        ]

    def register_with_event_loop(self, hub: Any) -> None:
        super().register_with_event_loop(hub)  # type: ignore[misc]
        for job, writer in self._writers():
            hub.add_writer(job._write_to.inqW_fd, writer)

    def on_job_process_down(self, job: Any, pid_gone: int) -> None:
        super().on_job_process_down(job, pid_gone)  # type: ignore[misc]
        if self.outbound_buffer:
            self.on_put_back()

    def _on_refused(self, number: int, inqW_fd: int) -> None:
        self._busy_workers.discard(inqW_fd)
        super()._on_refused(number, inqW_fd)

    def flush(self) -> None:
        """The connection is lost: what runs goes on, and its end must be heard.

        Celery before 5.6 forgets all jobs here, and which children are busy.
        """
        jobs = {number: job for number, job in self._cache.items() if job._accepted}
        super().flush()  # type: ignore[misc]
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
        super().on_partial_read(job, proc)  # type: ignore[misc]

    def process_flush_queues(self, proc: Any) -> None:
        if not proc._is_alive():
            self._result_handler.finish(proc.outqR_fd)
        super().process_flush_queues(proc)  # type: ignore[misc]

    # -- children that leave after so many tasks ------------------------------------------

    def WorkerProcess(self, worker: Any) -> Any:
        process = super().WorkerProcess(worker)  # type: ignore[misc]
        process.may_do = self._maxtasksperchild
        return process

    def on_job_ready(self, job: int, i: Any, obj: Any, inqW_fd: int) -> None:
        """A child that has had its last task gets no other: it would lie there until it is gone."""
        process = self._fileno_to_inq.get(inqW_fd)
        if process is not None and process.may_do is not None:
            process.may_do -= 1
            if process.may_do <= 0:
                return
        super().on_job_ready(job, i, obj, inqW_fd)  # type: ignore[misc]

    def _track_child_process(self, proc: Any, hub: Any) -> None:
        if getattr(proc, "_sentinel_poll", 0) is not None:  # else it is looked at again, see below
            super()._track_child_process(proc, hub)  # type: ignore[misc]

    def _event_process_exit(self, hub: Any, proc: Any) -> None:
        """It has closed its files, which a process does a bit before it has ended.

        Celery looks once. Too early, and nobody takes its place before the next look at all
        children, up to 5 s later.
        """
        self._untrack_child_process(proc, hub)  # type: ignore[attr-defined]
        if proc.exitcode is None:
            hub.call_later(LOOK_AGAIN, self._event_process_exit, hub, proc)
        else:
            self.maintain_pool()  # type: ignore[attr-defined]


def _refusal() -> ExceptionInfo:
    assert worker_state.board.value is not None
    try:
        raise TaskInterrupted(str(worker_state.board.value.reason), started=False)
    except TaskInterrupted:
        return ExceptionInfo()
