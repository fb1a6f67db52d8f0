"""The part of ``GracefulTask`` that lets it go on where it stopped."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

from celery.utils.log import get_logger

from celery_graceful.checkpoints.checkpoint import DELIVERY, Checkpoint
from celery_graceful.checkpoints.iteration import UNSET, Loop, Progress
from celery_graceful.checkpoints.safe_point import bounded_timeout
from celery_graceful.checkpoints.steps import step
from celery_graceful.checkpoints.watch import UNWATCHED, watch_of
from celery_graceful.exceptions import CheckpointError, SettingsError, TooManyInterruptions
from celery_graceful.messages.comebacks import may_resume, replaced_by
from celery_graceful.phases import Interrupt, InterruptReason
from celery_graceful.runs.frames import hidden
from celery_graceful.runs.run import Run
from celery_graceful.sources.base import Source
from celery_graceful.store.app_stores import find_store, settings_of

__all__ = [
    "Resumable",
    "body_of",
    "check_options",
    "count_given_up",
    "ended",
    "failed",
    "interrupted",
    "left",
    "place",
    "unfit_options",
]

T = TypeVar("T")
P = ParamSpec("P")

logger = get_logger(__name__)

_PROGRESS = "_graceful_progress"

#: Interruptions that say nothing about the task, and do not count.
_UNCOUNTED = (InterruptReason.RUN_TIME, InterruptReason.STORE_AWAY)


class Resumable:
    """Methods of a task that saves how far it has come."""

    #: Fail with ``TooManyInterruptions`` when interrupted more often. ``None``: no limit.
    max_interruptions: int | None = None
    #: Seconds after which the task goes to the tail of its queue, at its next safe point, to
    #: let others run. ``None``: no limit. Needs a store.
    max_run_time: float | None = None
    #: Seconds between two saves of the cursors of ``iterate``.
    checkpoint_interval: float = 5.0

    @property
    def state(self) -> Any:
        """What was last passed to ``checkpoint``, by this run or an earlier one; or ``None``.

        A copy. Assign to it to have a new state saved together with the cursors, and not at once:
        in a loop when the item in hand is done, so assign it wherever you like.
        """
        return Checkpoint.of(self).state

    @state.setter
    def state(self, state: Any) -> None:
        Checkpoint.of(self).set_state(state)

    @property
    def resumed(self) -> bool:
        """Whether this run goes on from what an earlier one saved."""
        return Checkpoint.of(self).resumed

    @property
    def interruptions(self) -> int:
        """How often this task was interrupted; going to the tail of the queue is not counted."""
        return Checkpoint.of(self).interruptions

    def on_resumed(self, state: Any) -> None:
        """Called before a run that goes on from a checkpoint.

        Part of the run: what it raises, the task has raised.

        Args:
            state: As ``self.state``.
        """

    def checkpoint(self, state: Any = None) -> None:
        """A safe point: save, then stop here if the worker has to stop.

        Args:
            state: JSON, or one of the types that come back as they were (see the docs).
                ``None`` leaves the state as it is.

        Raises:
            CheckpointError: The state cannot be saved. It names the part, and the mend.
            Interrupted: The task has to stop.
        """
        progress = _progress(self)
        progress.watch.checkpoint_comes()
        if state is not None:
            progress.checkpoint.set_state(state, at_once=True)
        progress.pause(save=state is not None)
        progress.watch.checkpoint_passed()

    def iterate(
        self,
        source: Iterable[T] | Source[T],
        *,
        name: str | None = None,
        cursor: Any = UNSET,
        every: int | None = None,
    ) -> Loop[T]:
        """Loop over ``source``, and go on after the last item done when resumed.

        An item is done when its body has ended. What is saved is saved every
        ``checkpoint_interval`` seconds, on an interrupt, on an exception and at the end.

        Args:
            source: A sequence, an iterable that gives the same items again, or a source of
                ``celery_graceful.sources``.
            name: Of the loop, for tasks with several: else it is known by its place.
            cursor: Where to go on, instead of what was saved; ``None`` is the beginning. For
                cursors that you commit yourself.
            every: Save after every so many items, too.

        Raises:
            CheckpointError: The source, or a cursor, cannot be gone on from.
            Interrupted: The task has to stop; raised between two items.
        """
        return Loop(_progress(self), source, name=name, cursor=cursor, every=every)

    def step(self, name: str, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``fn`` once per task, and return its result in this and every later run.

        A safe point, where ``fn`` has not been called yet.

        Args:
            name: Of the step. Inside ``iterate``, each item has its own steps.
            fn: What to call.
            args: For ``fn``.
            kwargs: For ``fn``.

        Raises:
            CheckpointError: The result is not JSON, or too large.
            Interrupted: The task has to stop.
        """
        return step(_progress(self), name, fn, args, kwargs)


def _progress(task: Any) -> Progress:
    request = task.request_stack.top
    found: Progress | None = None if request is None else request.__dict__.get(_PROGRESS)
    if found is None:
        found = Progress(
            Checkpoint.of(task),
            task.checkpoint_interval,
            task.max_run_time,
            UNWATCHED if request is None else watch_of(request.__dict__),
        )
        if request is not None:
            request.__dict__[_PROGRESS] = found
    return found


def check_options(tasks: Iterable[Any]) -> None:
    """Refuse class options that would turn the first interruption into a failure.

    Args:
        tasks: All of an app.

    Raises:
        SettingsError: Some cannot be used. It names each with its task.
    """
    SettingsError.raise_all([*unfit_options(tasks)])


def unfit_options(tasks: Iterable[Any]) -> Iterator[SettingsError]:
    """The class options that cannot be used, each with the task, its value and the mend."""
    graceful: list[Any] = [task for task in tasks if isinstance(task, Resumable)]
    for task in sorted(graceful, key=lambda task: str(task.name)):
        for option, (kinds, least, optional, mend) in _OPTIONS.items():
            value = getattr(task, option)
            if value is None and optional:
                continue
            of_kind = isinstance(value, kinds) and not isinstance(value, bool)
            if not of_kind or not (math.isfinite(value) and value >= least):
                yield SettingsError(f"{task.name}.{option}", value, mend)


#: Class options: their types, their least value, whether they may be ``None``, and the mend.
_OPTIONS: dict[str, tuple[tuple[type, ...], float, bool, str]] = {
    "max_interruptions": (
        (int,),
        0,
        True,
        "give a whole number of 0 or more, such as 20, or None for no limit",
    ),
    "max_run_time": (
        (int, float),
        sys.float_info.min,
        True,
        "give a number of seconds above zero, such as 600, or None for no limit",
    ),
    "checkpoint_interval": (
        (int, float),
        0,
        False,
        "give a number of seconds, such as 5, or 0 to save after every item",
    ),
}


# -- the boundary of a delivery ------------------------------------------------------


def body_of(task: Any, request: Any, run: Run, call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, with what has to come before it in a run that may go on from another."""
    hooked = type(task).on_resumed is not Resumable.on_resumed
    limited = task.max_interruptions is not None and may_resume(request)
    if not hooked and not limited:
        return call

    @hidden
    def body(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        checkpoint = Checkpoint.of(task, run)
        # The hard deadline counts as well, and nobody is there to fail the task then.
        if limited and checkpoint.interruptions > task.max_interruptions:
            raise _too_many(checkpoint.interruptions, task.max_interruptions)
        if hooked and checkpoint.resumed:
            task.on_resumed(checkpoint.state)
        return call(*args, **kwargs)

    return body


def left(request: Any) -> None:
    """The task's code has been left, and hooks may still set its state."""
    checkpoint = Checkpoint.used_by(request)
    if checkpoint is not None:
        checkpoint.body_left()


def place(request: Any) -> str:
    """Where its task stands, as far as it has said; empty where it has not."""
    checkpoint = Checkpoint.used_by(request)
    return "" if checkpoint is None else checkpoint.place


def interrupted(task: Any, run: Run, interrupt: Interrupt) -> TooManyInterruptions | None:
    """Save for the next run; the reason for a failure, if it was interrupted too often."""
    checkpoint = Checkpoint.of(task, run)
    if checkpoint.store is None:
        return None
    count = int(interrupt.reason not in _UNCOUNTED)
    if not checkpoint.save(interrupted=count, timeout=bounded_timeout(interrupt), insist=True):
        if not (checkpoint.lost or checkpoint.is_saved):  # else only how often is not counted
            logger.error(
                "%s[%s]: could not save before it goes back to the queue; it will go on from "
                "what was saved last",
                checkpoint.name,
                checkpoint.task_id,
            )
        return None
    limit = task.max_interruptions
    if count and limit is not None and checkpoint.interruption_count > limit:
        return _too_many(checkpoint.interruption_count, limit)
    return None


def _too_many(interruptions: int, limit: int) -> TooManyInterruptions:
    return TooManyInterruptions(
        f"interrupted {interruptions} times, max_interruptions is {limit}", interruptions, limit
    )


def failed(request: Any) -> None:
    """The task has raised something: save for the case that it runs again."""
    checkpoint = Checkpoint.used_by(request)
    if checkpoint is not None:
        try:
            checkpoint.save()
        except CheckpointError as exc:  # the task has raised it already, or something better
            logger.debug("%r", exc)


def ended(request: Any) -> None:
    """The task has succeeded: say which of its saved steps it did not come to."""
    progress = request.__dict__.get(_PROGRESS)
    if progress is not None:
        progress.report_unreached()


def count_given_up(task: Any, request: Any, began: float) -> None:
    """Count an interruption of a task that the hard deadline took away.

    Args:
        task: The task.
        request: Its context.
        began: When the delivery began, on the monotonic clock.
    """
    if isinstance(task, Resumable):
        Checkpoint(
            task.name,  # type: ignore[attr-defined]
            request.id,
            began=began,
            store=find_store(task.app),  # type: ignore[attr-defined]
            settings=settings_of(task.app),  # type: ignore[attr-defined]
            token=getattr(request, DELIVERY, ""),
            may_resume=may_resume(request),
            replaced=replaced_by(request),
        ).save(interrupted=1)
