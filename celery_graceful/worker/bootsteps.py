"""The steps that Celery's worker and consumer take for us, and nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from billiard.util import Finalize
from celery import bootsteps
from celery.apps.worker import Worker
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError

from celery_graceful.batches.kept_headers import check_function
from celery_graceful.checkpoints.resume import check_options
from celery_graceful.cleanup import callbacks
from celery_graceful.exceptions import SettingsError
from celery_graceful.messages import context
from celery_graceful.metrics.extras import check_extras
from celery_graceful.monitors.registry import monitors_of
from celery_graceful.monitors.setup_warnings import say_what_is_silent, say_who_is_unknown
from celery_graceful.monitors.tracer import silence_sentry
from celery_graceful.runs import frames
from celery_graceful.settings import Settings
from celery_graceful.system import fatal, native
from celery_graceful.system.version import NAME, VERSION
from celery_graceful.task.default_base import say_who_is_plain
from celery_graceful.task.misspelt import say_what_is_misspelt
from celery_graceful.task.trace_log import install_filter
from celery_graceful.timeline import grace_period
from celery_graceful.worker import control
from celery_graceful.worker.consumed_over import consumed_over
from celery_graceful.worker.drain import Drain
from celery_graceful.worker.embedded import EmbeddedWorker
from celery_graceful.worker.mailbox import leave_at_once
from celery_graceful.worker.process_exit import LAST_RECEIVERS
from celery_graceful.worker.queues_that_end import say_what_ends
from celery_graceful.worker.watch import Watch
from celery_graceful.worker.wiring import Parts

__all__ = ["ConsumerStep", "WorkerStep"]

logger = get_logger(__name__)

#: Seconds that check-ins get at the end of a worker whose process goes on.
LAST_REPORTS = 1.0


class WorkerStep(bootsteps.StartStopStep):
    """Starts first, stops last."""

    label = "Graceful"

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        with _said_plainly(worker):
            self._configure(worker.app.conf)

    def _configure(self, conf: Any) -> None:
        self.settings = Settings.from_conf(conf)
        _, self.deadlines = grace_period.deadlines_of(self.settings)
        check_extras(self.settings)

    def include(self, worker: Any) -> bool:
        # Not by ``requires``: the signal handlers have to be there before the pool starts,
        # and Celery installs its own when the blueprint starts.
        worker.steps.insert(0, self)
        return True

    def info(self, worker: Any) -> dict[str, Any]:
        """Of ``stats``, which all workers answer: by this others know one that is graceful."""
        return {NAME: VERSION}

    def start(self, worker: Any) -> None:
        # Not earlier: who makes a worker need not start it, or may do so in another thread.
        embedded_worker = None if native.in_main_thread() else EmbeddedWorker(worker)
        parts = worker.graceful = Parts(
            worker, self.settings, self.deadlines, embedded=embedded_worker is not None
        )
        if embedded_worker is not None:
            embedded_worker.attend(parts.drain, parts.ledger, parts.giving_up, parts.end)
        self._enter(parts)
        before = (lambda task: None) if embedded_worker is None else embedded_worker.note
        parts.adoption.begin(worker.consumer, before)
        install_filter(worker.app.connection_for_read().as_uri())
        frames.install()
        context.install()
        control.install()
        with _said_plainly(worker):
            check_options(worker.app.tasks.values())
            check_function(self.settings)
        say_who_is_plain(worker.app)
        say_what_is_misspelt(worker.app)
        self._check_monitors(worker)
        parts.others.adopt(worker.consumer)
        leave_at_once(worker.consumer)
        _connect_again(worker.consumer)
        with _said_plainly(worker):
            parts.start()
        if not parts.embedded:
            _install_handlers(parts.drain, parts.watch)
        d = self.deadlines
        logger.info(
            "Grace period: %g s (%s); soft deadline %.3g s, hard deadline %.3g s after the signal",
            d.grace,
            d.source,
            d.soft,
            d.hard,
        )
        _warn_superseded(worker.app.conf)

    @staticmethod
    def _enter(parts: Parts) -> None:
        """Tell what this process is, and who cleans up at its end."""
        in_process: list[callbacks.Scope] = ["process"] if parts.adapter.in_process else []
        if parts.embedded:
            callbacks.enter(*in_process)  # at the end of the process, which comes later
            return
        callbacks.enter(*in_process, "worker")
        # Where it cannot start, billiard rules its end: it ends the children at 15.
        Finalize(None, callbacks.run, exitpriority=-100)

    def _check_monitors(self, worker: Any) -> None:
        monitors = monitors_of(worker.app)
        with _said_plainly(worker):
            monitors.check()
        silence_sentry(monitors)
        say_what_is_silent(monitors)
        say_who_is_unknown(monitors)

    def stop(self, worker: Any) -> None:
        parts: Parts = worker.graceful
        ledger = parts.ledger
        parts.host.discard.flush(timeout=1.0)
        if ledger.post_mortems.start_notes is not None:
            ledger.post_mortems.start_notes.flush()
        if not parts.embedded:  # else the process goes on
            if getattr(worker, "beat", None):
                worker.beat.join(callbacks.time_left() / 2)
            callbacks.run()
        else:
            monitors_of(worker.app).dispatch.wait(LAST_REPORTS)
        parts.stopped()

    def terminate(self, worker: Any) -> None:
        parts: Parts = worker.graceful
        if parts.drain.stopping:
            parts.leaving.tell(min(LAST_RECEIVERS, callbacks.time_left() / 2))
        self.stop(worker)


class ConsumerStep(bootsteps.StartStopStep):
    """Follows the consumer through its connections."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    label = "Graceful"

    @staticmethod
    def _parts(consumer: Any) -> Parts | None:
        """None where the consumer was started without its worker: by Celery's own tests."""
        return getattr(consumer.controller, "graceful", None)

    def start(self, consumer: Any) -> None:
        parts = self._parts(consumer)
        if parts is None:
            return
        if not parts.kind.is_green:
            parts.owner.fill(consumed_over, consumer.connection)
        parts.loop.attach(consumer)
        say_what_ends(consumer)
        parts.places.arrive(consumer)
        # It is a member nowhere where Redis does not let it be.
        parts.unusable.attach(consumer, allowed=parts.places.here is not None)
        if parts.board.is_quiet:  # reconnected while stopping
            parts.loop.stop_fetching()

    def register_with_event_loop(self, consumer: Any, hub: Any) -> None:
        parts = self._parts(consumer)
        if parts is not None:
            parts.loop.register(hub)

    def stop(self, consumer: Any) -> None:
        parts = self._parts(consumer)
        if parts is not None:
            parts.owner.leave(consumed_over)
            parts.quiesce.consumer_lost()


@contextmanager
def _said_plainly(worker: Any) -> Iterator[None]:
    """What cannot be used ends a worker that somebody has started, without a traceback."""
    try:
        yield
    except SettingsError as exc:
        if isinstance(worker, Worker):
            fatal.end(exc)
        raise


def _install_handlers(drain: Drain, watch: Watch) -> None:
    """After Celery's own. A handler notes the time and returns."""
    _handle(signal.SIGTERM, lambda: drain.request_stop("SIGTERM"))
    _handle(signal.SIGINT, lambda: drain.request_stop("SIGINT"))  # the watch counts a second one
    if hasattr(signal, "SIGQUIT"):
        _handle(signal.SIGQUIT, lambda: drain.request_hard("SIGQUIT"))
    # Without a terminal Celery starts anew; with one it leaves SIGHUP alone, and dies of it.
    if not drain.worker.app.IS_macOS and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        _handle(signal.SIGHUP, drain.on_hangup)
        watch.hear_hangup()


def _handle(number: int, request: Callable[[], object]) -> None:
    owner = os.getpid()

    def on_signal(signum: int, frame: Any) -> None:
        if os.getpid() == owner:
            request()
        elif signum != signal.SIGINT:
            # A process that a task has forked has the handler, and the board. Who ends it means it.
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    signal.signal(number, on_signal)


def _connect_again(consumer: Any) -> None:
    """Also where its connection was lost while something was sent over it, as by ``mingle``.

    Celery ends the worker by that.
    """
    consumer.connection_errors = (*consumer.connection_errors, OperationalError)


def _warn_superseded(conf: Any) -> None:
    superseded = [f"{name}={value}" for name, value in grace_period.superseded(conf)]
    if superseded:
        logger.warning(
            "%s: superseded by celery_graceful's drain, whose timeline is the same for all "
            "ways to stop a worker",
            " and ".join(superseded),
        )
