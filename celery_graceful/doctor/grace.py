"""The grace period, and what has to fit into it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery_graceful.batches.kept_headers import check_function
from celery_graceful.checkpoints.resume import unfit_options
from celery_graceful.doctor.examination import Examination
from celery_graceful.doctor.findings import Check, Severity, Trouble
from celery_graceful.exceptions import SettingsError
from celery_graceful.metrics.extras import check_extras
from celery_graceful.settings import Settings
from celery_graceful.system.describe import shortened
from celery_graceful.task.base import GracefulTask
from celery_graceful.timeline.grace_period import Deadlines, deadlines_of, superseded

__all__ = ["CHECKS"]

#: Tasks that one finding names.
NAMED = 5


def unfit_settings(exam: Examination) -> Iterator[Trouble]:
    """CG101: what ends a worker at its start."""
    try:
        settings = Settings.from_conf(exam.app.conf)
        check_extras(settings)
        _check_registry(settings)
        check_function(settings)
        deadlines_of(settings, exam.detect)
    except SettingsError as exc:
        yield from map(_unfit, (exc, *exc.others))
    for unfit in unfit_options(exam.tasks):
        yield _unfit(unfit)


def _check_registry(settings: Settings) -> None:
    if "prometheus" in settings.metrics and settings.prometheus_registry is not None:
        from celery_graceful.metrics.prometheus import load_registry

        load_registry(settings.prometheus_registry)


def _unfit(exc: SettingsError) -> Trouble:
    return Trouble(exc.name, exc.value, "no worker starts with it", exc.mend)


def assumed_period(exam: Examination) -> Iterator[Trouble]:
    """CG102: a platform's default, which may have been changed there."""
    grace, _ = exam.grace
    if grace.assumed_of:
        yield Trouble(
            "the grace period",
            f"{grace.seconds:g} s",
            f"it is {grace.source}: a worker cannot see whether another one is set there",
            "set graceful_grace_period, or TERMINATION_GRACE_PERIOD_SECONDS in the environment, to "
            "what is set there",
        )


def time_limits(exam: Examination) -> Iterator[Trouble]:
    """CG103: tasks that may run for longer than a stop waits."""
    yield from _limits(exam, "time_limit", "hard deadline", exam.deadlines.hard)


def soft_time_limits(exam: Examination) -> Iterator[Trouble]:
    """CG104: tasks whose soft limit comes after that of a stop."""
    yield from _limits(exam, "soft_time_limit", "soft deadline", exam.deadlines.soft)


def _limits(exam: Examination, option: str, name: str, deadline: float) -> Iterator[Trouble]:
    setting = f"task_{option}"
    general = exam.app.conf.get(setting)
    of_setting = []
    for task in exam.tasks:
        limit = exam.limit(task, option)
        if limit <= deadline:
            continue
        if limit == general:
            of_setting.append(task)
        else:
            yield _limit(f"{task.name}.{option}", limit, name, deadline, [task])
    if of_setting:
        yield _limit(setting, general, name, deadline, of_setting)


def _limit(thing: str, limit: float, name: str, deadline: float, tasks: list[Any]) -> Trouble:
    cut = [task.name for task in tasks if not task.acks_late and not isinstance(task, GracefulTask)]
    late = f"{limit:g} s are more than the {deadline:.3g} s until the {name} of a stop"
    if cut:
        named = shortened(cut, NAMED)
        return Trouble(
            thing,
            limit,
            f"{late}, at which a run of {named} fails, or is sent again from its beginning: it is "
            "acknowledged before it starts",
            "a longer grace period, a shorter limit, or base=GracefulTask with safe points",
        )
    return Trouble(
        thing,
        limit,
        f"{late}: a run that takes that long goes back to its queue, and starts over where it has "
        "no safe points",
        "nothing, if it has safe points (iterate, checkpoint, sleep); else give it some",
        Severity.NOTE,
    )


def max_runtimes(exam: Examination) -> Iterator[Trouble]:
    """CG105: monitors of runs that take longer than a stop waits."""
    monitors = exam.monitors
    for task in exam.tasks:
        try:
            monitor = monitors.own(task)
        except SettingsError:
            continue  # said by the monitors' own checks
        if monitor is None or monitor.max_runtime is None or exam.any_limit(task):
            continue
        seconds = monitor.max_runtime * 60
        if seconds > exam.deadlines.hard:
            yield Trouble(
                f"max_runtime of the monitor {monitor.slug}",
                monitor.max_runtime,
                f"a run of {task.name} may take {seconds} s, and a stop waits for "
                f"{exam.deadlines.hard:.3g} s: it goes on elsewhere, within the same check-in",
                "nothing, if the task has safe points (iterate, checkpoint, sleep); else give it "
                "some, or it starts over while the clock of its monitor runs on",
            )


def prestop(exam: Examination) -> Iterator[Trouble]:
    """CG106: a hook that takes what the worker counts on."""
    if not exam.prestop:
        return
    grace, deadlines = exam.grace
    left = exam.platform_grace(grace).seconds - exam.prestop
    if grace.seconds > left:
        what, severity = _too_late(deadlines, left)
        yield Trouble(
            "--prestop",
            exam.prestop,
            f"the hook leaves {max(left, 0):g} s of the grace period, and the worker counts on "
            f"{grace.seconds:g} s ({grace.source}): {what}",
            f"set graceful_grace_period = {left:g}"
            if left > 0
            else "give the platform a longer grace period than the hook takes",
            severity,
        )


def _too_late(deadlines: Deadlines, given: float) -> tuple[str, Severity]:
    """What it costs that SIGKILL comes after so many seconds, and how bad that is."""
    if given <= deadlines.last_resort:
        return "SIGKILL comes before it has given its tasks back", Severity.ERROR
    return "little is left for its exit", Severity.WARNING


def told_too_much(exam: Examination) -> Iterator[Trouble]:
    """CG108: a worker that is told to count on more than its platform gives."""
    grace, deadlines = exam.grace
    given = exam.platform_grace(grace)
    # What a hook leaves of it is said there.
    if grace.seconds > given.seconds and not exam.prestop:
        what, severity = _too_late(deadlines, given.seconds)
        yield Trouble(
            "the grace period",
            f"{grace.seconds:g} s",
            f"the worker counts on that ({grace.source}), and its platform gives "
            f"{given.seconds:g} s ({given.source}): {what}",
            f"say {given.seconds:g} where it says {grace.seconds:g}, or have the platform wait "
            "for longer",
            severity,
        )


def other_ways_to_stop(exam: Examination) -> Iterator[Trouble]:
    """CG107: settings of Celery's that have no effect any more."""
    for name, value in superseded(exam.app.conf):
        yield Trouble(
            name,
            value,
            "it has no effect: all ways to stop a worker have the timeline of celery_graceful",
            f"take it out; {_INSTEAD[name]}",
        )


_INSTEAD: dict[str, str] = {
    "REMAP_SIGTERM": "SIGTERM drains, SIGQUIT jumps to the hard deadline",
    "worker_soft_shutdown_timeout": "graceful_grace_period is what there is",
}


CHECKS = (
    Check("CG101", Severity.ERROR, unfit_settings),
    Check("CG102", Severity.NOTE, assumed_period),
    Check("CG103", Severity.WARNING, time_limits),
    Check("CG104", Severity.WARNING, soft_time_limits),
    Check("CG105", Severity.NOTE, max_runtimes),
    Check("CG106", Severity.ERROR, prestop),
    Check("CG107", Severity.WARNING, other_ways_to_stop),
    Check("CG108", Severity.ERROR, told_too_much),
)
