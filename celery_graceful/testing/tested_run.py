"""``graceful_run``: one task in this process, delivery after delivery."""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable
from types import CoroutineType, GeneratorType
from typing import Any

from celery import states
from celery.app.trace import build_tracer
from celery.utils import uuid

from celery_graceful.checkpoints.codec import decode
from celery_graceful.checkpoints.watch import WATCH
from celery_graceful.exceptions import TaskInterrupted
from celery_graceful.runs.run import current
from celery_graceful.task.base import GracefulTask
from celery_graceful.testing import events
from celery_graceful.testing.events import Event
from celery_graceful.testing.in_process_worker import InProcessWorker
from celery_graceful.testing.killing import is_death
from celery_graceful.testing.observer import Observer, Row, Step

__all__ = ["GracefulRun", "NotReached", "Outcome", "graceful_run"]


class Outcome(str, enum.Enum):
    """How a delivery ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    #: The message is back in the queue, or sent again.
    INTERRUPTED = "interrupted"
    KILLED = "killed"
    RETRIED = "retried"
    #: The task raised ``Ignore`` or ``Reject``.
    IGNORED = "ignored"

    def __str__(self) -> str:
        return self.value


#: After these there is another delivery.
_OPEN = (None, Outcome.INTERRUPTED, Outcome.KILLED, Outcome.RETRIED)

_OUTCOMES = {
    states.SUCCESS: Outcome.SUCCEEDED,
    states.FAILURE: Outcome.FAILED,
    states.RETRY: Outcome.RETRIED,
    states.IGNORED: Outcome.IGNORED,
    states.REJECTED: Outcome.IGNORED,
}


#: What calling a function gives whose body has not begun.
_NOT_RUN = (CoroutineType, GeneratorType)

#: Deliveries to which nothing happens, until a task is said to have no end.
MOST = 1000


class NotReached(AssertionError):
    """A task has ended before it came to where it was to be interrupted."""


class GracefulRun:
    """A task and its deliveries, each begun by one of the methods.

    Attributes:
        outcome: How the last delivery ended; ``None`` before the first.
        deliveries: How many there were.
    """

    def __init__(
        self,
        task: GracefulTask,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        before_each: Callable[[], None] = lambda: None,
        shared: tuple[Any, ...] = (),
    ) -> None:
        found = getattr(task, "_get_current_object", lambda: task)()
        if not isinstance(found, GracefulTask):
            raise TypeError(f"{task!r} is no GracefulTask: give one, and not what it returns")
        self.task = found
        self.outcome: Outcome | None = None
        self.deliveries = 0
        self.observer = Observer(self._interrupt)
        self._args, self._kwargs = args, kwargs
        self._before_each = before_each
        self._shared = shared
        self._id = uuid()
        self._retries = 0
        self._ended: Any = None
        self._fields: dict[str, str] = {}
        self._worker: InProcessWorker | None = None

    # -- what happens to it --------------------------------------------------------------

    def interrupt_at(self, *, row: int) -> GracefulRun:
        """Run it, and ask the worker to stop while that row is in hand.

        Args:
            row: Its number, from 1, in the order in which ``iterate`` first gave them.

        Raises:
            NotReached: The task had ended before.
        """
        return self.deliver(events.interrupt_at(row=row))

    def interrupt_in_step(self, name: str) -> GracefulRun:
        """Run it, and ask the worker to stop while the function of that step runs.

        Args:
            name: Of the step, or its path.

        Raises:
            NotReached: The task had ended before.
        """
        return self.deliver(events.interrupt_in_step(name))

    def interrupt_after_step(self, name: str) -> GracefulRun:
        """Run it, and ask the worker to stop when that step was saved.

        Args:
            name: Of the step, or its path.

        Raises:
            NotReached: The task had ended before.
        """
        return self.deliver(events.interrupt_after_step(name))

    def interrupt_at_checkpoint(self, number: int) -> GracefulRun:
        """Run it, and ask the worker to stop at that call of ``checkpoint``.

        Args:
            number: Of the call, from 1, in this delivery.

        Raises:
            NotReached: The task had ended before.
        """
        return self.deliver(events.interrupt_at_checkpoint(number))

    def soft_deadline_after(self, seconds: float) -> GracefulRun:
        """Run it, and let the soft deadline pass then.

        Args:
            seconds: After its beginning.
        """
        return self.deliver(events.soft_deadline_after(seconds))

    def kill_at(
        self,
        *,
        row: int | None = None,
        step: str | None = None,
        checkpoint: int | None = None,
        end: bool = False,
        saved: bool = False,
    ) -> GracefulRun:
        """Run it, and kill its process there, as by ``kill -9``. Give one of the first four.

        Args:
            row: When that row's body has ended, and nothing was saved since the last save.
            step: When its function has returned, and the result is not saved.
            checkpoint: Where it is called, before it saves.
            end: When the task has returned, and its message is not acknowledged.
            saved: Just after that was saved, instead.

        Raises:
            NotReached: The task had ended before.
        """
        return self.deliver(
            events.kill_at(row=row, step=step, checkpoint=checkpoint, end=end, saved=saved)
        )

    def resume(self) -> GracefulRun:
        """Run it with nothing that happens: from its beginning, or from where it stands."""
        return self._deliver(None)

    def deliver(self, event: Event) -> GracefulRun:
        """Run it, and let that happen.

        Args:
            event: What ``interrupt_at``, ``kill_at`` and the others of this module return.

        Raises:
            NotReached: It did not, since the task had ended before.
        """
        self._deliver(event)
        if event.seconds is None and not self.observer.has_come:
            raise NotReached(
                f"{event!r} never came: {self._say_end()}; it has {self._say_places()}"
            )
        return self

    def follow(self, *schedule: Event) -> GracefulRun:
        """Let one after the other happen, and then nothing, until the task has ended.

        What the task does not come to is passed over.

        Args:
            schedule: What ``interrupt_at``, ``kill_at`` and the others of this module return.

        Raises:
            AssertionError: It does not end.
        """
        for event in schedule:
            if self.has_ended:
                return self
            self._deliver(event)
        for _ in range(MOST):
            if self.has_ended:
                return self
            self._deliver(None)
        raise AssertionError(f"no end after {self.deliveries} deliveries: {self._say_end()}")

    # -- what became of it ---------------------------------------------------------------

    @property
    def has_ended(self) -> bool:
        """Whether it will not be delivered again."""
        return self.outcome not in _OPEN

    @property
    def rows(self) -> list[Row]:
        """What ``iterate`` gave, of all loops."""
        return self.observer.rows

    @property
    def steps(self) -> dict[str, Step]:
        """Its steps, by their paths: the name, inside of a loop behind that of the item."""
        return self.observer.steps

    @property
    def state(self) -> Any:
        """The state that was saved last, as ``self.state`` has it; ``None`` if there is none."""
        text = self._fields.get("state")
        return None if text is None else decode(text)

    @property
    def saves(self) -> int:
        """How often something was saved."""
        return self.observer.store.saves

    @property
    def error(self) -> BaseException | None:
        """What it has failed by, or the ``Retry``."""
        return self._ended if isinstance(self._ended, BaseException) else None

    @property
    def result(self) -> Any:
        """What it returned.

        Raises:
            BaseException: It has failed by that.
            RuntimeError: It has not ended.
        """
        if self.outcome is Outcome.FAILED:
            raise self._ended
        if self.outcome is not Outcome.SUCCEEDED:
            raise RuntimeError(self._say_end())
        return self._ended

    def _say_end(self) -> str:
        how = self.outcome or "not begun"
        return f"{self.task.name} has {how}{f': {self.error!r}' if self.error else ''}"

    def _say_places(self) -> str:
        steps = ", ".join(map(repr, self.steps)) or "none"
        return f"{len(self.rows)} rows, {self.observer.checkpoints} checkpoints, and steps: {steps}"

    # -- one delivery --------------------------------------------------------------------

    def _interrupt(self) -> None:
        assert self._worker is not None
        self._worker.stop()

    def _deliver(self, event: Event | None) -> GracefulRun:
        if self.has_ended:
            raise RuntimeError(f"{self._say_end()}: make another run of it")
        if current() is not None:
            raise RuntimeError("a task runs here already")
        if self.deliveries:
            self._before_each()
        self.deliveries += 1
        self._worker = InProcessWorker(self.task.app)
        self.observer.begin(event)
        try:
            with self._worker.running(None if event is None else event.seconds):
                self._ended, state = self._trace()
        except BaseException as exc:
            if not (self.observer.was_killed and is_death(exc)):
                raise
            self._ended, state = None, ""
        finally:
            self.observer.end()
        if isinstance(self._ended, _NOT_RUN):
            self._ended.close()
            raise TypeError(
                f"{self.task.name} returned {self._ended!r}, which no worker runs: the task itself "
                "is a coroutine, or a generator"
            )
        left_out = state == states.IGNORED and not isinstance(self._ended, TaskInterrupted)
        if state == states.SUCCESS or left_out:
            self.observer.task_returned()
        if self.observer.was_killed:  # also where that was swallowed
            self.outcome = Outcome.KILLED
        elif isinstance(self._ended, TaskInterrupted):
            self.outcome = Outcome.INTERRUPTED
        else:
            self.outcome = _OUTCOMES.get(state, Outcome.FAILED)
        self._retries += self.outcome is Outcome.RETRIED
        self._fields = dict(self.observer.store.fields)
        return self

    def _trace(self) -> tuple[Any, str]:
        # Each worker unpacks the message anew; what stands for the world outside stays that.
        memo = {id(each): each for each in self._shared}
        args, kwargs = copy.deepcopy((self._args, self._kwargs), memo)
        request = {
            "id": self._id,
            "root_id": self._id,
            "task": self.task.name,
            "args": args,
            "kwargs": kwargs,
            "retries": self._retries,
            "is_eager": False,
            "ignore_result": True,  # there is nobody to ask for it
            "hostname": "test@localhost",
            "delivery_info": {"redelivered": self.deliveries > 1 and not self._retries},
            WATCH: self.observer,
        }
        # Not Celery's eager mode, in which a task is part of whoever called it. What that spares is
        # the result backend.
        trace = build_tracer(self.task.name, self.task, eager=True, app=self.task.app)
        done = trace(self._id, args, kwargs, request)
        if done.info is None:
            return done.retval, states.SUCCESS
        return done.info.retval, done.info.state


def graceful_run(task: Any, /, *args: Any, **kwargs: Any) -> GracefulRun:
    """A task that has not begun, to be run, interrupted and killed in this process.

    What it saves is kept in memory. What it sends (``delay``, ``retry``) goes where its app sends
    it.

    Args:
        task: A ``GracefulTask``.
        args: For the task. Each delivery has a copy, as from a message.
        kwargs: For the task.

    Raises:
        TypeError: It is another kind of task.
    """
    return GracefulRun(task, args, kwargs)
