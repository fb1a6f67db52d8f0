"""What becomes of a delivery: how its end is heard, and what is done for it."""

from __future__ import annotations

import signal as _signal
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from billiard.exceptions import Terminated, TimeLimitExceeded
from celery.exceptions import TaskRevokedError
from celery.platforms import signals
from celery.utils.log import get_logger
from celery.worker.request import Request

from celery_graceful.batches.model import Outcome
from celery_graceful.batches.skipped_or_replaced import LeftOut, Why
from celery_graceful.deliveries.custom_strategies import has_own_strategy
from celery_graceful.deliveries.exc_info import as_failure, as_lost, how_it_died, raised
from celery_graceful.deliveries.goes_on import GoesOn
from celery_graceful.deliveries.handler_errors import LOST, let_go, put_right, requeues, say
from celery_graceful.deliveries.member_end import outcome_of
from celery_graceful.deliveries.moments import enter
from celery_graceful.deliveries.requeue import NotTaken
from celery_graceful.deliveries.stage import LEFT, OPEN, UNBEGUN, Stage
from celery_graceful.deliveries.worker_services import WorkerServices
from celery_graceful.exceptions import TaskInterrupted
from celery_graceful.history.entry import What
from celery_graceful.monitors import outcome
from celery_graceful.monitors.registry import monitors_of
from celery_graceful.phases import InterruptReason
from celery_graceful.runs.unstored import is_unsent, take
from celery_graceful.store.store import StoreAway
from celery_graceful.system.describe import describe
from celery_graceful.task.base import GracefulTask
from celery_graceful.timeline.successors import Sent

__all__ = ["GracefulRequest", "adopt", "is_adopted"]

logger = get_logger(__name__)

#: Interruptions after which others come first.
_TO_THE_TAIL = (str(InterruptReason.RUN_TIME), str(InterruptReason.STORE_AWAY))

#: What a task ends by whose process was ended.
_DEATHS = (*LOST, Terminated)

#: What is said of what was told to end, and has.
_TERMINATED = ("terminated", True, _signal.SIGTERM, False)


class GracefulRequest(GoesOn):
    """A delivery that can be given back at any time and ends once.

    Celery derives a class from this one for each task; ``__init_subclass__`` puts the checks
    around the methods that it overrides there. Whatever is raised in one of those that hear of
    an end goes no further than the end itself (``handler_errors``).
    """

    _looked_into = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        on_success = cls.__dict__.get("on_success")
        if on_success is not None:
            cls.on_success = _ends_once(on_success)
        execute = cls.__dict__.get("execute_using_pool")
        if execute is not None:
            cls.execute_using_pool = _hands_over(execute)

    # -- before it is started ----------------------------------------------------------

    def revoked(self) -> bool:
        """Asked before anything is started: also where a drain stops a request."""
        if self.stage is Stage.HANDED_OVER and not self.by_others:
            return False  # it was asked a moment ago, and there is no way back
        if self.stage in LEFT or self.tells_later:
            return True
        if super().revoked():
            return True
        if self.ledger.releasing:
            self.ledger.release_unstarted()  # it, and all that waits behind it
        return self.stage in LEFT

    def leave_for_later(self, why: str) -> bool:
        """Give it back, unless it was started."""
        try:
            return bool(self.ledger.release([self], why))
        except Exception as exc:
            self.ledger.note_failure(exc)
            logger.error("Could not give %s back: %s", self.humaninfo(), describe(exc))
        return True

    def look_into(self) -> bool:
        """Whether it has to wait for a post-mortem before it is handed over."""
        if self._looked_into or self.has_left:
            return False
        # A plain task is run again beside itself, as ever; a graceful one never is.
        alone = isinstance(self.task, GracefulTask) and self.task.acks_late
        self._looked_into = self.ledger.post_mortems.delivered_again(self, self._go_on, alone=alone)
        return self._looked_into

    def put_off(self) -> None:
        """Another worker runs it, for longer than it is good to wait."""
        self.leave_for_later("another worker runs it")
        self.host.process(self)  # its place in the pool is free again

    def _go_on(self, has_ended: bool) -> None:
        if has_ended:
            self.ledger.drop(self)
        self.host.process(self)

    # -- ended from outside ------------------------------------------------------------

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Revoked with ``terminate``. Any signal but SIGTERM ends the process, as ever."""
        signum = signals.signum(signal or _signal.SIGTERM)
        may_end = signum == _signal.SIGTERM and self.stage is Stage.RUNNING
        if not may_end or not (self.told_to_end or self.host.revoke(self)):
            self.is_killed = bool(self.time_start)
            super().terminate(pool, signal)

    def tell_revoked(self) -> None:
        """It was told to end, and has ended."""
        self.keeps_end(TaskRevokedError(_TERMINATED[0]), _nothing)  # not its message
        self._say_revoked(*_TERMINATED)

    def _end_revoked(self, *args: Any, only: Iterable[Stage], dying: bool = False) -> None:
        again = partial(self._end_revoked, *args, only=OPEN, dying=dying)
        with self.ledger.leaving:
            came_to, has_expired = TaskRevokedError(args[0]), args[3]
            # It expires once more where it comes again; a revoke may be forgotten there.
            if has_expired and self.stage in only and self.keeps_end(came_to, again, only):
                return
            if self.ledger.close(self, Stage.FINISHED, only=only):
                self.keeps_end(came_to, _nothing)  # not its message
                self._say_revoked(*args, dying=dying)

    def drop_cancelled(self) -> None:
        """Its batch was cancelled; what a pool has been handed asks by itself before it begins."""
        if self.tells_later:
            return
        args = ("its batch was cancelled", False, None, False)
        self._end_revoked(*args, only=(Stage.RECEIVED,))

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Celery's, in ``revoked``, in ``terminate``, and of what a pool says has ended.

        First of all nobody else can have it begin or end: telling all takes a while, in which
        threads and greenlets do.
        """
        if self.tells_later:
            return
        args, dying = (reason, terminated, signum, expired), self.stage is Stage.RUNNING
        if not terminated:
            self._end_revoked(*args, only=OPEN if self.by_others else UNBEGUN, dying=dying)
        elif self.stage not in OPEN:
            self._say_revoked(*args, dying=dying)
        elif self.lost:
            self.ledger.drop_lost(self)
        else:
            self._end_revoked(*args, only=OPEN, dying=dying)

    def _say_revoked(self, *args: Any, dying: bool = False) -> None:
        self.comes_to(Outcome.REVOKED)
        try:
            super()._announce_revoked(*args)
        except BaseException as exc:
            self._already_revoked = True
            put_right(self, exc)
        finally:
            self.write_end()
            outcome.close(self, "error", "revoked or expired", dying=dying)
            self.take_mark()
            self.discard_saved()

    def _announce_cancelled(self, *args: Any, **kwargs: Any) -> None:
        super()._announce_cancelled(*args, **kwargs)
        self.ledger.finish(self)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        if soft:
            super().on_timeout(soft, timeout)
        elif self.tells_later:
            self._also = partial(self.on_timeout, soft, timeout)
        elif self.leave_to_successor(f"hard time limit ({timeout} s) exceeded"):
            self.settle()
        elif self.keeps_end(TimeLimitExceeded(timeout), partial(self.on_timeout, soft, timeout)):
            pass
        elif self.has_ended():
            self.comes_to(Outcome.FAILED)
            tell = partial(super().on_timeout, soft, timeout)
            self._tell_end(tell, TimeLimitExceeded(timeout), self._after_timeout)

    def _after_timeout(self) -> None:
        if not self.goes_on:
            outcome.close(self, "error", "hard time limit", dying=True)
        if self.acknowledged:
            self.settle()

    def _tell_end(
        self, tell: Callable[[], None], by: BaseException, then: Callable[[], None]
    ) -> None:
        """Have Celery tell all that it has ended by an exception; ``then`` is done in any case."""
        try:
            try:
                tell()
            except BaseException as exc:
                put_right(self, exc, requeues(self, by))
            finally:
                then()
        finally:
            self.write_end()

    def has_ended(self) -> bool:
        """It has ended by itself; a hard time limit is told twice, as time-out and as failure."""
        return self.ledger.finish(self) or self.stage is Stage.FINISHED

    # -- ended by itself ---------------------------------------------------------------

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> None:
        with self.ledger.leaving:
            self._on_failure(exc_info, send_failed_event, return_ok)

    def on_left(self, exc_info: Any) -> None:
        """What is no ``Exception`` has ended the task, and not its process: it has failed.

        Celery stumbles over it in a pool of threads or greenlets, and the task stays open.
        """
        self.on_failure(as_failure(exc_info))

    def _on_failure(self, exc_info: Any, send_failed_event: bool, return_ok: bool) -> None:
        exc = raised(exc_info)
        if self.lost:
            self.ledger.drop_lost(self)
            if not isinstance(exc, _DEATHS):
                self.ledger.post_mortems.outlived(self)
        elif self.tells_later:
            self._also = partial(self.on_failure, exc_info, send_failed_event, return_ok)
        elif self.told_to_end and isinstance(exc, (TaskInterrupted, *_DEATHS)):
            self._end_revoked(*_TERMINATED, only=OPEN)
        elif self.is_left or (self._was_cut_off(exc) and self.leave_to_successor(describe(exc))):
            self.settle()
        elif isinstance(exc, TaskInterrupted):
            tail = exc.reason in _TO_THE_TAIL
            self._on_interrupted(exc.started, exc.reason, exc.where, tail=tail)
        elif self._lost_to_the_stop(exc):
            outcome.interrupted([self])
            self._on_interrupted(True, "its process ended with the worker")
        elif not self._is_death(exc) or not self.ledger.post_mortems.child_died(
            self,
            partial(self._after_death, exc_info, send_failed_event, return_ok),
            how_it_died(exc),
        ):
            self._fail(exc_info, send_failed_event, return_ok)

    def _fail(self, exc_info: Any, send_failed_event: bool, return_ok: bool) -> None:
        again = partial(self.on_failure, exc_info, send_failed_event, return_ok)
        if self.tells_when_stored(exc_info, again):
            return
        exc, keep = raised(exc_info), self.host.untold.keep
        if keep(self, exc, beside_task=not return_ok or is_unsent(exc_info)):
            return
        if isinstance(exc, LeftOut) and exc.why is Why.CANCELLED:
            self._end_revoked(exc.why.value, False, None, False, only=OPEN)
            return
        came_to = self.stored_for(raised(as_lost(exc_info)), return_ok)
        fail = partial(self._fail_later, exc_info, send_failed_event, return_ok)
        if self.keeps_end(came_to, fail):
            return
        if not self.has_ended():
            return
        self.comes_to(
            None if self._already_cancelled else outcome_of(exc, acknowledged=self.acknowledged)
        )
        if not self._already_revoked and not self._already_cancelled:
            exc_info = as_lost(exc_info)
        tell = partial(super().on_failure, exc_info, send_failed_event, return_ok)
        self._tell_end(tell, exc, partial(self._after_failure, raised(exc_info), return_ok))

    def _after_failure(self, exc: BaseException, return_ok: bool) -> None:
        if not (self.goes_on or self._already_cancelled or self.successor is Sent.RETRY):
            outcome.close_failed(self, exc, succeeded=self.is_settled, said=return_ok)
        self.settle()

    def _fail_later(self, *args: Any) -> None:
        with self.ledger.leaving:
            self._fail(*args)

    def tells_when_stored(self, end: Any, again: Callable[[], None]) -> bool:
        """Whether its result could not be stored, and its end is told ``again`` when it is."""
        unstored = take(end, self.id)
        return unstored is not None and self.host.late_results.keep(self, unstored, again)

    def has_succeeded(self) -> bool:
        """Whether the child stored the result of its task before it died."""
        return bool(self._success_was_stored())

    def _success_was_stored(self) -> Any:
        """Celery asks since 5.7, when a child is lost, whether its task had succeeded before."""
        ask = getattr(super(), "_success_was_stored", None)
        stored = None if ask is None or self.asks_nothing else ask()
        self.is_settled = bool(stored)
        if stored:
            self.has_succeeded_whole()
        return stored

    def _is_death(self, exc: BaseException) -> bool:
        """Whether the child died with the task, and the message would go back for it."""
        task = self.task
        return (
            self.stage is Stage.RUNNING
            and isinstance(exc, LOST)
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
            self.ledger.drop(self)

    def settle(self) -> None:
        """It has ended; if that was for good, its checkpoint is of no use any more."""
        is_marked = self.take_mark()  # also of a retry: its next run knows that it is one
        may_be_there = not self.goes_on and (is_marked or self.has_predecessors)
        if may_be_there and self.successor is not Sent.RETRY:  # sent, and it ended all the same
            self.discard_saved(self.is_off_hands)

    def _was_cut_off(self, exc: BaseException) -> bool:
        """Whether its process has not lived to say how it ended, and not since it was revoked."""
        is_cut = isinstance(exc, (*_DEATHS, TimeLimitExceeded))
        return is_cut and not (self._already_revoked or self._already_cancelled)

    def _lost_to_the_stop(self, exc: BaseException) -> bool:
        """Whether the child was taken down with the worker, and not by a revoke or a limit."""
        is_death = not isinstance(exc, TimeLimitExceeded)
        return self.ledger.stopping and is_death and self._was_cut_off(exc)

    def _on_interrupted(
        self, started: bool, reason: str, where: str = "", *, tail: bool = False
    ) -> None:
        stage = Stage.INTERRUPTED if started else Stage.RELEASED
        if not self.ledger.close(self, stage, only=OPEN):
            return
        let_go(self)
        self.take_mark()  # it may go on elsewhere
        kind = What.INTERRUPTED if started else What.RELEASED
        if reason == InterruptReason.LEASE_LOST:
            kind = What.FENCED
            self.ledger.post_mortems.outlived(self)
        enter([self], kind, reason, where)
        try:
            self.ledger.requeue.give_back([self], tail=tail)
        except Exception as exc:
            if self.ledger.stopping or isinstance(exc, NotTaken):
                self.ledger.note_failure(exc)
            known = isinstance(exc, (StoreAway, NotTaken, OSError))  # an outage, and where
            told = describe(exc)
            logger.error("Could not give %s back: %s", self.humaninfo(), told, exc_info=not known)
        if started:
            # Not before: it may wait for a broker of its own, which must not keep the message. So
            # the next worker's `task-started` may overtake it.
            try:
                self.send_event("task-interrupted", reason=str(reason), where=where)
            except Exception as exc:
                say(self, "is back in its queue, and its event was not sent", exc)


def _nothing() -> None: ...


def _ends_once(on_success: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: GracefulRequest, failed__retval__runtime: Any, **kwargs: Any) -> None:
        failed, retval, runtime = failed__retval__runtime
        if failed:
            self.on_failure(retval, return_ok=True)
            return
        if self.is_killed and runtime is None:
            return  # what Celery says of a greenlet that it has killed; it was revoked
        if self.tells_later:
            return
        with self.ledger.leaving:
            if type(retval) is not str and self.tells_when_stored(
                retval, partial(guarded, self, (failed, str(retval), runtime), **kwargs)
            ):
                return
            if self.ledger.finish(self):
                if self.is_part:
                    self.has_succeeded_whole()
                try:
                    on_success(self, failed__retval__runtime, **kwargs)
                except BaseException as exc:
                    put_right(self, exc)
                finally:
                    self.settle()
                    if self.is_part and not self._is_written:
                        self.write_end()
            elif self.lost:
                self.ledger.post_mortems.outlived(self)

    return guarded


def _hands_over(execute_using_pool: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: GracefulRequest, pool: Any, **kwargs: Any) -> Any:
        if self.stage is Stage.FINISHED or (self.came_before and self.host.duplicates.settle(self)):
            let_go(self)
            raise TaskRevokedError(self.id)  # its place in the pool is free again
        if self.came_before and self.look_into():
            return None
        if not self.host.can_pass_by and not self.revoked():  # no way back from here
            with self.ledger.lock:
                if self.stage is Stage.RECEIVED:
                    self.stage = Stage.HANDED_OVER
        return execute_using_pool(self, pool, **kwargs)

    return guarded


def is_adopted(task: Any, host: WorkerServices) -> bool:
    """Whether ``task`` uses requests of that worker."""
    return getattr(task.Request, "host", None) is host


def adopt(task: Any, host: WorkerServices) -> None:
    """Make ``task`` use graceful requests, on top of the request class that it has.

    Args:
        task: One of the app's.
        host: The worker, as they see it.
    """
    from celery.utils.imports import symbol_by_name

    base = symbol_by_name(task.Request)
    base = vars(base).get("plain", base)  # another worker of this process has adopted it
    bases = (GracefulRequest,) if base is Request else (GracefulRequest, base)
    own = {"host": host, "ledger": host.ledger, "monitors": monitors_of(task.app)}
    own |= {"by_others": has_own_strategy(task), "plain": base}
    task.Request = type("GracefulRequest", bases, own)
