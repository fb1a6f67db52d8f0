"""The main process's side of one delivery."""

from __future__ import annotations

import itertools
import signal as _signal
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from billiard.exceptions import Terminated, WorkerLostError
from celery.exceptions import TaskRevokedError
from celery.platforms import signals
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.request import Request
from kombu.utils.objects import cached_property

from celery_graceful import phase
from celery_graceful.checkpoint import DELIVERY, may_resume
from celery_graceful.claims import Tag
from celery_graceful.exceptions import TaskInterrupted
from celery_graceful.failure import as_failure, as_lost, raised
from celery_graceful.fence import CLAIM
from celery_graceful.ledger import OPEN, Ledger, Stage
from celery_graceful.monitors import outcome
from celery_graceful.phase import InterruptReason

__all__ = ["GracefulRequest", "adopt"]

logger = get_logger(__name__)


#: Interruptions after which others come first.
_TO_THE_TAIL = (str(InterruptReason.RUN_TIME), str(InterruptReason.STORE_AWAY))

#: What a task ends by whose process has not lived to say so.
_DEATHS = (WorkerLostError, Terminated, SystemExit, KeyboardInterrupt)

_BOOT = uuid.uuid4().hex
_numbers = itertools.count(1)


class GracefulRequest(Request):
    """A delivery that can be given back at any time and ends once.

    Celery derives a class from this one for each task; ``__init_subclass__`` puts the checks
    around the methods that it overrides there.
    """

    #: The ledger of this worker; set by ``adopt``.
    ledger: Ledger

    _message: Any
    _on_ack: Any
    _on_reject: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stage = Stage.RECEIVED
        self.started_at: float | None = None
        self._goes_on = False
        self._succeeded = False
        #: It was revoked while it ran, and was told so.
        self.told_to_end = False
        #: Others took the worker for dead, and have the message.
        self.lost = False
        #: What the store was told of its start.
        self.note: str | None = None
        #: The connection that it came over is gone, and the message back at the broker.
        self.orphaned = False
        self._looked_into = False
        # Tells the deliveries of a task apart; the copies of the message cannot.
        self.request_dict[DELIVERY] = f"{_BOOT}:{next(_numbers)}"
        tag = self.message.delivery_tag
        #: The claim of its message, on Redis.
        self.claim = tag if isinstance(tag, Tag) else None
        if self.claim is not None:
            self.request_dict[CLAIM] = str(tag)
            self.claim.book.held.add(self.claim)
        self.ledger.held[id(self)] = self
        if self.ledger.releasing:  # Celery may keep it, for its ETA or its rate limit
            self.ledger.on_change()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        on_success = cls.__dict__.get("on_success")
        if on_success is not None:
            cls.on_success = _ends_once(on_success)
        execute = cls.__dict__.get("execute_using_pool")
        if execute is not None:
            cls.execute_using_pool = _hands_over(execute)

    @property
    def running_for(self) -> float:
        """Seconds since the pool started it."""
        return 0.0 if self.started_at is None else time.monotonic() - self.started_at

    # -- the way to the pool -------------------------------------------------------

    def revoked(self) -> bool:
        """Asked before anything is started: also where a drain stops a request."""
        if self.has_left:
            return True
        if super().revoked():
            return True
        if self.ledger.releasing and self.ledger.close(
            self, Stage.RELEASED, only=(Stage.RECEIVED,)
        ):
            state.task_ready(self)
            try:
                self.ledger.requeue.give_back([self])
            except Exception as exc:
                self.ledger.failed = True
                logger.error("Could not give %s back: %r", self.humaninfo(), exc)
            return True
        return False

    def begin(self) -> bool:
        """The pool is about to start it. False: it was given back meanwhile, leave it."""
        with self.ledger.lock:
            if self.stage not in (Stage.RECEIVED, Stage.HANDED_OVER):
                return False
            self.stage = Stage.RUNNING
        self.started_at = time.monotonic()
        if outcome.check_in_of(self) is not None:
            self.ledger.on_check_in()
        self.note = self.ledger.inquest.begins(self)
        return True

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        if self.stage is not Stage.RUNNING and not self.begin():
            return
        super().on_accepted(pid, time_accepted)

    # -- the way out ---------------------------------------------------------------

    def finish(self) -> bool:
        """It has ended by itself. False: it was given back before, ignore its end."""
        if self.lost:
            self.drop_lost()
            return False
        return self.ledger.close(self, Stage.FINISHED, only=OPEN)

    def _has_ended(self) -> bool:
        """As ``finish``; a hard time limit is told twice, as time-out and as failure."""
        return self.finish() or self.stage is Stage.FINISHED

    def give_up(self) -> bool:
        """The hard deadline takes it away. False: it has ended."""
        return self.ledger.close(self, Stage.GIVEN_UP, only=OPEN)

    @property
    def has_left(self) -> bool:
        """Whether it is not ours any more."""
        return self.stage in (Stage.RELEASED, Stage.GIVEN_UP, Stage.LOST)

    def acknowledge(self) -> None:
        if self.orphaned and self.ledger.copies.owe(self):
            self.acknowledged = True
        elif self.has_left:
            return
        elif self.claim is not None and not self.ledger.connected():
            # Celery's way leads through the loop, which is busy connecting again.
            if not self.acknowledged:
                self.claim.book.ack(self.claim)
                self.acknowledged = True
        else:
            self._note_end()
            super().acknowledge()

    def _note_end(self) -> None:
        """It need not come back, whatever becomes of Celery's way to say so: through the loop."""
        if self.claim is not None and not self.acknowledged:
            self.claim.book.ended.add(self.claim)

    def reject(self, requeue: bool = False) -> None:
        if self.has_left:
            return
        if self.orphaned and (requeue or self.ledger.copies.owe(self)):
            self.acknowledged = True
            return
        self._goes_on = self._goes_on or requeue
        if not requeue:
            self._note_end()
        super().reject(requeue=requeue)
        if self.stage is Stage.RECEIVED:  # an ETA that means nothing
            self.finish()
            if not self._goes_on:
                outcome.close(self, "error", "rejected")

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Revoked with ``terminate``. Any signal but SIGTERM ends the process, as ever."""
        signum = signals.signum(signal or _signal.SIGTERM)
        may_end = signum == _signal.SIGTERM and self.stage is Stage.RUNNING
        if not may_end or not (self.told_to_end or self.ledger.revoke(self)):
            super().terminate(pool, signal)

    def tell_revoked(self) -> None:
        """It was told to end, and has ended."""
        self._announce_revoked("terminated", True, int(_signal.SIGTERM), False)

    def ack_at_once(self) -> None:
        """Acknowledge without another turn of the loop. In the loop's thread."""
        self._on_ack = self.message.ack_log_error

    def _announce_revoked(self, *args: Any, **kwargs: Any) -> None:
        dying = self.stage is Stage.RUNNING
        super()._announce_revoked(*args, **kwargs)
        outcome.close(self, "error", "revoked or expired", dying=dying)
        self.ledger.forget(self.task.name, self.id, "", None)
        self.finish()  # also where no pool will report its end

    def _announce_cancelled(self, *args: Any, **kwargs: Any) -> None:
        super()._announce_cancelled(*args, **kwargs)
        self.finish()

    def on_timeout(self, soft: bool, timeout: float) -> None:
        if not soft and not self._has_ended():
            return
        super().on_timeout(soft, timeout)
        if not soft and not self._goes_on:
            outcome.close(self, "error", "hard time limit", dying=True)
        if not soft and self.acknowledged:
            self.settle()

    def on_retry(self, exc_info: Any) -> None:
        self._goes_on = True
        super().on_retry(exc_info)

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> None:
        with self.ledger.leaving:
            self._on_failure(exc_info, send_failed_event, return_ok)

    def on_left(self, exc_info: Any) -> None:
        """What is no ``Exception`` has ended the task, and not its process: it has failed.

        Celery stumbles over it in a pool of threads or greenlets, and the task stays open.
        """
        failure = as_failure(exc_info)
        self.on_failure(failure)
        if self.stage is Stage.FINISHED:
            outcome.close(self, "error", str(failure.exception))

    def _on_failure(self, exc_info: Any, send_failed_event: bool, return_ok: bool) -> None:
        exc = raised(exc_info)
        if self.lost:
            self.drop_lost()
        elif self.told_to_end and isinstance(exc, (TaskInterrupted, *_DEATHS)):
            if self.finish():
                self.tell_revoked()
        elif isinstance(exc, TaskInterrupted):
            self._on_interrupted(exc.started, tail=exc.reason in _TO_THE_TAIL)
        elif self._lost_to_the_stop(exc):
            outcome.interrupted([self])
            self._on_interrupted(True)
        elif not self._is_death(exc) or not self.ledger.inquest.child_died(
            self, partial(self._after_death, exc_info, send_failed_event, return_ok)
        ):
            self._fail(exc_info, send_failed_event, return_ok)

    def _fail(self, exc_info: Any, send_failed_event: bool, return_ok: bool) -> None:
        if self._has_ended():
            if not self._already_revoked and not self._already_cancelled:
                exc_info = as_lost(exc_info)
            super().on_failure(exc_info, send_failed_event, return_ok)
            if not (self._goes_on or self._already_cancelled):
                outcome.close_failed(self, raised(exc_info), succeeded=self._succeeded)
            self.settle()

    def _success_was_stored(self) -> Any:
        """Celery asks since 5.7, when a child is lost, whether its task had succeeded before."""
        ask = getattr(super(), "_success_was_stored", None)
        stored = None if ask is None else ask()
        self._succeeded = bool(stored)
        return stored

    def _is_death(self, exc: BaseException) -> bool:
        """Whether the child died with the task, and the message would go back for it."""
        task = self.task
        return (
            self.stage is Stage.RUNNING
            and isinstance(exc, (WorkerLostError, SystemExit, KeyboardInterrupt))
            and not self._already_revoked
            and not self._already_cancelled
            and task.acks_late
            and (task.reject_on_worker_lost or getattr(task, "retry_on_worker_lost", False))
        )

    def _after_death(
        self, exc_info: Any, send_failed_event: bool, return_ok: bool, quarantined: bool
    ) -> None:
        if not quarantined:
            self._fail(exc_info, send_failed_event, return_ok)
        else:
            self.drop()

    def drop(self) -> None:
        """It has ended elsewhere: in quarantine, or as another delivery."""
        if self.finish():
            state.task_ready(self)
            self.acknowledge()

    def drop_lost(self) -> None:
        """It has ended, and another run of it is what counts: say nothing of it."""
        if self.ledger.close(self, Stage.LOST, only=OPEN):
            state.task_ready(self)

    def take_over(self, copy: GracefulRequest) -> None:
        """Its message was delivered again: that delivery is the one to acknowledge."""
        self._message, self._on_ack, self._on_reject = (
            copy._message,
            copy._on_ack,
            copy._on_reject,
        )
        self.orphaned = False

    def leave_to(self, run: GracefulRequest) -> None:
        """As a copy of ``run``, which has taken it over."""
        if self.ledger.close(self, Stage.RELEASED, only=OPEN):
            state.task_ready(self)
            state.requests[run.id] = run

    def look_into(self) -> bool:
        """Whether it has to wait for an inquest before it is handed over."""
        if self._looked_into or self.has_left:
            return False
        self._looked_into = self.ledger.inquest.delivered_again(self, self._go_on)
        return self._looked_into

    def _go_on(self, quarantined: bool) -> None:
        if quarantined:
            self.drop()
        self.ledger.process(self)

    def settle(self) -> None:
        """It has ended; if that was for good, its checkpoint is of no use any more."""
        marked = phase.board is not None and phase.board.take_mark(self.id)
        if not self._goes_on and (marked or may_resume(self.context)):
            token = self.request_dict[DELIVERY]
            self.ledger.forget(self.task.name, self.id, token, self.started_at)

    def _lost_to_the_stop(self, exc: BaseException) -> bool:
        """Whether the child was taken down with the worker, and not by a revoke or a limit."""
        return (
            self.ledger.stopping
            and isinstance(exc, _DEATHS)
            and not self._already_revoked
            and not self._already_cancelled
        )

    def _on_interrupted(self, started: bool, *, tail: bool = False) -> None:
        stage = Stage.INTERRUPTED if started else Stage.RELEASED
        if not self.ledger.close(self, stage, only=OPEN):
            return
        state.task_ready(self)
        try:
            self.ledger.requeue.give_back([self], tail=tail)
        except Exception as exc:
            self.ledger.failed = self.ledger.failed or self.ledger.stopping
            logger.error("Could not give %s back: %r", self.humaninfo(), exc, exc_info=True)
        if started:
            self.send_event("task-interrupted")

    @property
    def wants_events(self) -> bool:
        """Whether events are on, for the worker and the task."""
        return bool(self.eventer and self.eventer.enabled and self.task.send_events)

    @cached_property
    def context(self) -> Any:
        """The task's context, as signals and backends want it."""
        return self._context


def _ends_once(on_success: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: GracefulRequest, failed__retval__runtime: Any, **kwargs: Any) -> Any:
        with self.ledger.leaving:
            if not failed__retval__runtime[0] and not self.finish():
                return None
            result = on_success(self, failed__retval__runtime, **kwargs)
            if not failed__retval__runtime[0]:
                self.settle()
            return result

    return guarded


def _hands_over(execute_using_pool: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: GracefulRequest, pool: Any, **kwargs: Any) -> Any:
        if self.stage is Stage.FINISHED or self.ledger.copies.settle(self):
            raise TaskRevokedError(self.id)  # its place in the pool is free again
        if self.look_into():
            return None
        if pool.uses_semaphore and not self.revoked():  # prefork: no way back from here
            with self.ledger.lock:
                if self.stage is Stage.RECEIVED:
                    self.stage = Stage.HANDED_OVER
        return execute_using_pool(self, pool, **kwargs)

    return guarded


def adopt(task: Any, ledger: Ledger) -> None:
    """Make ``task`` use graceful requests, on top of the request class that it has."""
    from celery.utils.imports import symbol_by_name

    base = symbol_by_name(task.Request)
    if issubclass(base, GracefulRequest):
        return
    bases = (GracefulRequest,) if base is Request else (GracefulRequest, base)
    task.Request = type("GracefulRequest", bases, {"ledger": ledger})
