"""``assert_survives_interruptions``: a task is interrupted and killed wherever it can be."""

from __future__ import annotations

import copy
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    MappingView,
    MutableMapping,
    MutableSequence,
    MutableSet,
)
from typing import Any

from celery.exceptions import Ignore

from celery_graceful.testing.difference import difference
from celery_graceful.testing.events import (
    Event,
    interrupt_after_step,
    interrupt_at,
    interrupt_at_checkpoint,
    interrupt_in_step,
    kill_at,
)
from celery_graceful.testing.fresh_memory import FreshMemory, named_by
from celery_graceful.testing.tested_run import GracefulRun, Outcome

__all__ = ["assert_survives_interruptions"]

#: Points that a task may come to after it was told to stop: one it cannot help.
_MAY_COME_TO = 1


def assert_survives_interruptions(
    task: Any,
    /,
    *args: Any,
    effects: Any,
    reset: Callable[[], Any] | None = None,
    outside: Iterable[Any] = (),
    kills: bool = True,
    schedules: Iterable[Iterable[Event]] | None = None,
    **kwargs: Any,
) -> None:
    """Fail unless a task has the same effects, wherever it is interrupted or killed.

    It runs once undisturbed, then once for each of its rows, steps and calls of ``checkpoint``:
    interrupted there, killed there, killed when that was just saved, and killed when it has ended;
    then it goes on, to its end, as in a new process. Once it is interrupted at all of them in turn.

    Args:
        task: A ``GracefulTask``.
        args: For the task.
        effects: Where its effects are seen: a list, dict or set that they go to, which is
            emptied before each run; or a function that returns what there is.
        reset: Called before each run; with a function as ``effects``, it makes the world as it
            was.
        outside: Other objects in memory that stand for the world outside, such as a fake
            database: a new process finds them as they are. (``effects``, ``reset`` and what these
            name are outside.) All else that the task keeps in memory is gone in a new process.
        kills: Also kill it. What is in hand then is done again, so its effects have to be such
            that twice is as good as once.
        schedules: What is to happen, instead of everything in turn: a failure shows it.
        kwargs: For the task.

    Raises:
        TypeError: ``schedules`` are no lists of events; ``effects`` are no container, nor a
            function.
        ValueError: There is no schedule in ``schedules``.
        AssertionError: The effects differ, or it goes on although it was told to stop. It names
            the point, the schedule, and the difference.
    """
    given_schedules = None if schedules is None else _lists(schedules)
    trial = _Trial(task, args, kwargs, effects, reset, outside)
    expected, undisturbed = trial.run()
    again, second = trial.run()
    if again != expected:
        raise AssertionError(
            "\n".join(
                [
                    f"{trial.name}: two runs that nobody disturbed have different effects",
                    *_indented(difference(expected, again)),
                    "Something in it depends on the time or on chance, and comes out differently "
                    "when it goes on as well; or reset= does not make the world as it was.",
                ]
            )
        )
    for path in undisturbed.steps:
        if path not in second.steps:
            raise AssertionError(
                f"{trial.name}: of two runs that nobody disturbed, the second has no step "
                f"{path!r}. A step is known by its name: one that is called differently each time "
                "is run again when the task goes on"
            )
    given = _all(undisturbed, kills) if given_schedules is None else given_schedules
    for schedule in given:
        found, run = trial.run(schedule)
        if found != expected or len(run.observer.ran_on) > _MAY_COME_TO:
            raise AssertionError(_report(trial, schedule, run, undisturbed, expected, found))


def _lists(schedules: Iterable[Iterable[Event]]) -> list[list[Event]]:
    found: list[list[Event]] = []
    for schedule in schedules:
        events = list(schedule) if isinstance(schedule, Iterable) else [None]
        if not all(isinstance(event, Event) for event in events):
            raise TypeError(
                f"schedules= has {schedule!r}: give a list of schedules, each a list of what "
                "interrupt_at, kill_at and the others return"
            )
        found.append(events)
    if not found:
        raise ValueError(
            "schedules= is empty: nothing would be tried. Leave it out, for everything in turn, or "
            "give at least one schedule"
        )
    return found


class _Trial:
    """One task, and the world that it acts upon."""

    def __init__(
        self,
        task: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        effects: Any,
        reset: Callable[[], Any] | None,
        outside: Iterable[Any],
    ) -> None:
        self._given = task, args, kwargs
        self._effects, self._reset = effects, reset
        is_container = isinstance(effects, (MutableSequence, MutableMapping, MutableSet))
        if not is_container and not callable(effects):
            raise TypeError(
                f"effects={effects!r}: give a list, dict or set, or a function that returns what "
                "there is"
            )
        self._is_container = is_container
        self._world = named_by(effects, reset, *outside)
        run = GracefulRun(*self._given)
        self.task, self.name = run.task, run.task.name
        written = [*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())]
        #: The task and its arguments, to be pasted.
        self.call = ", ".join([self.name.rpartition(".")[2], *written])
        self.process = FreshMemory(run.task, self._world)

    def run(self, schedule: list[Event] | None = None) -> tuple[Any, GracefulRun]:
        """The effects of a run from the beginning to the end."""
        self.process.begin()
        self.process.forgotten.clear()
        if self._is_container:
            self._effects.clear()
        if self._reset is not None:
            self._reset()
        run = GracefulRun(*self._given, self.process.begin, tuple(self._world))
        run.follow(*(schedule or ()))
        if schedule is None and not _has_its_end(run):
            raise AssertionError(
                f"{self.name} has {run.outcome} although nobody disturbed it: {run.error!r}"
            ) from run.error
        found = self._effects if self._is_container else self._effects()
        is_lazy = isinstance(found, Iterable) and not isinstance(found, Collection)
        if is_lazy or isinstance(found, MappingView):
            found = list(found)  # what is lazy would be looked at when the next run has begun
        return copy.deepcopy(found), run


def _all(run: GracefulRun, kills: bool) -> Iterator[list[Event]]:
    interrupts: list[list[Event]] = []
    deaths: list[list[Event]] = []
    for row in run.rows:
        interrupts.append([interrupt_at(row=row.number)])
        deaths.append([kill_at(row=row.number)])
        deaths.append([kill_at(row=row.number, saved=True)])
    for path in run.steps:
        interrupts += [[interrupt_in_step(path)], [interrupt_after_step(path)]]
        deaths += [[kill_at(step=path)], [kill_at(step=path, saved=True)]]
    for number in range(1, run.observer.checkpoints + 1):
        interrupts.append([interrupt_at_checkpoint(number)])
        deaths.append([kill_at(checkpoint=number)])
        deaths.append([kill_at(checkpoint=number, saved=True)])
    yield from interrupts
    if len(interrupts) > 1:
        yield [event for schedule in interrupts for event in schedule]
    if kills:
        yield from deaths
        yield [kill_at(end=True)]


def _has_its_end(run: GracefulRun) -> bool:
    """Whether the task chose its end: by a return, or by ``Ignore``, which ``replace`` raises."""
    ignored = run.outcome is Outcome.IGNORED and isinstance(run.error, Ignore)
    return ignored or run.outcome is Outcome.SUCCEEDED


def _report(
    trial: _Trial,
    schedule: list[Event],
    run: GracefulRun,
    undisturbed: GracefulRun,
    expected: Any,
    found: Any,
) -> str:
    lines = [f"{trial.name} does not survive {', then '.join(map(str, schedule))}:"]
    if found != expected:
        lines += _indented(["its effects differ from those of an undisturbed run"])
        lines += _indented(_indented(difference(expected, found)))
    ran_on = run.observer.ran_on
    if len(ran_on) > _MAY_COME_TO:
        lines += _indented(
            [
                f"it was told to stop, and went on with {', '.join(ran_on[:3])}: does something "
                "catch BaseException, or Interrupted?"
            ]
        )
    if not _has_its_end(run):
        lines += _indented([f"it has {run.outcome} in the end: {run.error!r}"])
    lines += _indented(_hints(trial, run, undisturbed))
    lines += [
        "To repeat it:",
        f"    assert_survives_interruptions({trial.call}, effects=...,",
        f"        schedules=[{schedule!r}])",
    ]
    return "\n".join(lines)


def _hints(trial: _Trial, run: GracefulRun, undisturbed: GracefulRun) -> Iterator[str]:
    repeated = [f"row {row.number} ({row.item!r:.60})" for row in run.rows if row.repeated]
    repeated += [f"step {step.path!r}" for step in run.steps.values() if step.repeated]
    if repeated:
        more = f" and {len(repeated) - 3} more" if len(repeated) > 3 else ""
        yield f"what ran twice: {', '.join(repeated[:3])}{more}"
    if trial.process.forgotten:
        names = ", ".join(trial.process.forgotten)
        yield f"what was kept in memory, and a new process has anew: {names} (if not: outside=)"
    disorder = run.observer.disorder(undisturbed.observer)
    if disorder:
        yield disorder


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]
