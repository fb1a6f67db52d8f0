"""The child's side of prefork: what the object does that billiard runs in a child process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from billiard.common import _shutdown_cleanup
from billiard.pool import SIG_SOFT_TIMEOUT
from celery.app import trace
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_logger

from celery_graceful.batches.marks import hand_on
from celery_graceful.batches.running import ask_before
from celery_graceful.checkpoints.checkpoint import DELIVERY
from celery_graceful.claims.begun import note_now
from celery_graceful.cleanup import callbacks
from celery_graceful.messages import context
from celery_graceful.monitors import tracer
from celery_graceful.monitors.registry import monitors_of
from celery_graceful.phases import Phase
from celery_graceful.pools import wake_signal
from celery_graceful.pools.base import watch_plain_task
from celery_graceful.pools.handlers import Handlers
from celery_graceful.pools.pipes import quick_put, unfolded
from celery_graceful.runs import frames, interrupt, log_locks
from celery_graceful.runs.run import current
from celery_graceful.runs.stacks import stack_of
from celery_graceful.store import scripts
from celery_graceful.system import native, telemetry
from celery_graceful.system.orphans import end_with_parent, is_orphan
from celery_graceful.system.process import Slot, itself, kept
from celery_graceful.task.trace_log import install_filter
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import Board

__all__ = ["REFUSED", "graceful_worker"]

logger = get_logger(__name__)

#: What a child sends for a job that it has read and will not begin; Celery's ``WORKER_UP`` is 15.
REFUSED = 16


def graceful_worker(cls: Any) -> Any:
    """A class like ``cls``, billiard's ``Worker`` or one derived from it, for graceful children."""
    return type(cls.__name__, (_GracefulChild, cls), {"base": cls})


def _restore(base: Any, args: Any) -> Any:
    return graceful_worker(base)(*args)


class _GracefulChild:
    """Mixed into billiard's ``Worker``, the object that a child process runs."""

    base: Any
    initargs: tuple[Any, ...]
    on_exit: Any
    wait_for_job: Any
    outq: Any
    inqW_fd: int

    def __reduce__(self) -> Any:
        # A spawned child can find the base by its name.
        _, args = super().__reduce__()  # type: ignore[str-unpack]
        return _restore, (self.base, args)

    def __call__(self) -> None:
        callbacks.enter("process")
        try:
            super().__call__()  # type: ignore[misc]
        finally:  # only where it could not start: else it has left
            callbacks.run()

    def after_fork(self) -> None:
        super().after_fork()  # type: ignore[misc]
        self.on_exit = partial(_leave, self.on_exit, self._holds_results)
        # Billiard has set its own handlers in the line above; ours come after them.
        _install_child(*self.initargs)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def _holds_results(self) -> bool:
        """Whether this thread is just writing to the pipe that all children may share."""
        lock = getattr(self.outq, "_wlock", None)
        return lock is not None and lock._semlock._is_mine()

    def _make_child_methods(self, *args: Any) -> None:
        super()._make_child_methods(*args)  # type: ignore[misc]
        self.outq.put = quick_put(self.outq)
        receive, first = self.wait_for_job, True

        def wait_for_job() -> Any:
            if _handlers.value is not None:
                _handlers.value.put_back()
            message: Any = receive()
            if not message:
                return message
            message = unfolded(message)
            if worker_state.board.value is not None and worker_state.board.value.releasing:
                job, _, _, args, _ = message[1]
                if _is_delivery(args):
                    # Before billiard says that it has begun, counts it among what this child may
                    # do in its life, and Celery stores that it has started.
                    self.outq.put((REFUSED, (job, self.inqW_fd)))
                    return None
            nonlocal first
            for arg in message[1][3]:  # as in ``_deliveries``, which is for few
                if isinstance(arg, dict) and DELIVERY in arg:
                    if first or (arg.get("delivery_info") or {}).get("redelivered"):
                        note_now(self.initargs[0], arg, first=first, in_child=True)
                    first = False
            return message

        self.wait_for_job = wait_for_job


def _is_delivery(args: Any) -> bool:
    """Whether a job is a delivery of ours: other code may use the pool for something else."""
    return any(_deliveries(args))


def _deliveries(args: Any) -> list[dict[str, Any]]:
    return [arg for arg in args if isinstance(arg, dict) and DELIVERY in arg]


#: The id of this child of the pool, also in what its tasks fork.
_pid = Slot("pool's child", int, in_fork=kept)

#: Those that it has when no task runs.
_handlers: Slot[Handlers | None] = Slot("signal handlers", lambda: None, in_fork=kept)


def _install_child(app: Any, hostname: str) -> None:
    end_with_parent(signal.SIGKILL)
    itself.fill(_pid, os.getpid())
    if worker_state.board.value is None:
        board = Board.announced()
        if board is None:
            logger.error("No board in a spawned child: its tasks will see no interrupt")
            return
        worker_state.attach(board)
        scripts.read_all()
        _load_now(app)
    interrupt.begin()
    log_locks.install()
    install_filter()
    frames.install()
    context.install()
    signal.signal(wake_signal.SIGNAL, _on_wake)
    signal.signal(signal.SIGTERM, _on_term)
    signal.signal(signal.SIGHUP, _on_term)
    if SIG_SOFT_TIMEOUT is not None:
        signal.signal(SIG_SOFT_TIMEOUT, _on_soft_limit)
    itself.fill(_handlers, Handlers(wakeup=False))
    for name, task in app.tasks.items():
        if watch_plain_task(task):
            # By the module: Sentry and others have put theirs in its place there.
            task.__trace__ = trace.build_tracer(name, task, app.loader, hostname, app=app)
        tracer.trace_with_check_in(task)
        ask_before(task)
        hand_on(task)
    tracer.silence_sentry(monitors_of(app))
    itself.fill(tracer.reports_first, True)


def _load_now(app: Any) -> None:
    """What a forked child inherits: at the first end of a task there may be no time for it."""
    try:
        app.backend  # noqa: B018
        app.connection_for_write().transport  # noqa: B018
    except Exception as exc:  # who uses it is told
        logger.debug("Could not load it yet: %r", exc)


def _leave(
    on_exit: Callable[[int, int], Any] | None,
    holds_results: Callable[[], bool],
    pid: int,
    exitcode: int,
) -> None:
    """The child leaves; billiard's ``on_exit`` sends ``worker_process_shutdown``."""
    board = worker_state.board.value
    with _deaf():
        try:
            if on_exit is not None:
                on_exit(pid, exitcode)
        finally:
            callbacks.run(on_stuck=partial(os._exit, exitcode))
            telemetry.flush(callbacks.time_left())
        if board is not None and board.phase is Phase.EXIT:
            # The main process has all results, and waits for nothing but the end of its children:
            # billiard's second, in which a child is told to end by one that listens, is of use to
            # threads of others alone.
            if telemetry.others_may_send():
                native.pause(min(telemetry.PATIENCE, callbacks.time_left()))
            os._exit(exitcode)

    # There is nothing left to protect: billiard says that it is gone, waits a second, and is told
    # to end as soon as that was heard, which may be before it has let go of the pipe. It keeps the
    # signal from its own thread meanwhile, which the kernel gives to any other one then.
    def end(*_: Any) -> None:
        if not holds_results():
            os._exit(exitcode)

    signal.signal(signal.SIGTERM, end)


@contextmanager
def _deaf() -> Iterator[None]:
    """It is leaving already: being told so again must not cut its cleanups short."""
    told = [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, wake_signal.SIGNAL]
    if SIG_SOFT_TIMEOUT is not None:
        told.append(SIG_SOFT_TIMEOUT)
    kept = [(number, signal.signal(number, signal.SIG_IGN)) for number in told]
    try:
        yield
    finally:
        for number, handler in kept:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _on_wake(signum: int, frame: Any) -> None:
    board, pid = worker_state.board.value, os.getpid()
    assert board is not None
    board.set_heard(pid, True)
    if board.is_target(pid):
        _shutdown_cleanup(signal.SIGTERM, frame)
    if board.wants_stack(pid):
        board.give_stack(pid, stack_of(frame))
    wake_signal.look(signum, frame)


def _on_term(signum: int, frame: Any) -> None:
    """SIGTERM or SIGHUP to the whole process group: the main process drains, the task goes on.

    When the main process leaves, it ends its children with the same signal. And a process that a
    task has forked ends as it would without us, as does one whose main process is gone.
    """
    assert worker_state.board.value is not None
    pid = os.getpid()
    if (
        pid != _pid.value
        or worker_state.board.value.phase is Phase.EXIT
        or worker_state.board.value.is_target(pid)
        or is_orphan()
    ):
        _shutdown_cleanup(signum, frame)


def _on_soft_limit(signum: int, frame: Any) -> None:
    """Celery's soft time limit, kept out of the worker's own code."""
    run = current()
    if run is None:
        raise SoftTimeLimitExceeded
    run.soft_limit_hit = True
    wake_signal.look(signum, frame)
