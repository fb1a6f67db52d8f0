"""Monitors that would be silent, refused, or wrong."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from celery_graceful.doctor.examination import Examination
from celery_graceful.doctor.findings import Check, Severity, Trouble
from celery_graceful.exceptions import SettingsError
from celery_graceful.monitors.monitor import Monitor
from celery_graceful.monitors.setup_warnings import what_is_silent, who_is_unknown, who_reports
from celery_graceful.system.loaded import loaded

__all__ = ["CHECKS"]


def unfit_monitors(exam: Examination) -> Iterator[Trouble]:
    """CG501: monitors that cannot be used, or that two report to."""
    for unfit in exam.monitor_faults:
        yield Trouble(unfit.name, unfit.value, "no worker starts with it", unfit.mend)


def renamed_entries(exam: Examination) -> Iterator[Trouble]:
    """CG502: beat entries whose monitors are not called as they are."""
    exam.monitors.know_entries()
    for owner, slug, why in exam.monitors.entries.renamed():
        yield Trouble(
            f"the monitor of {owner}",
            slug,
            f"it has a hash {why}",
            "nothing, if you know it by that name; else rename the entry",
        )


def schedules(exam: Examination) -> Iterator[Trouble]:
    """CG503: schedules that Sentry's server cannot take."""
    zone = str(exam.app.timezone)
    for owner, monitor in _monitors(exam):
        _, reason = monitor.config(zone)
        if reason:
            yield Trouble(
                f"the schedule of {owner}",
                repr(monitor.schedule),
                f"{reason}: it is not sent, and Sentry does not know when a run is missing",
                "write another one, or make the monitor at Sentry by hand",
            )


def _monitors(exam: Examination) -> Iterator[tuple[str, Monitor]]:
    """All that there are, each with whose it is."""
    for task in exam.tasks:
        own = _own(exam, task)
        if own is not None:
            yield f"the monitor {own.slug}", own
    for name, schedule, task_name in _entries(exam):
        task = exam.app.tasks.get(task_name)
        if not _beat_takes(schedule):  # CG510
            continue
        if task is not None and _own(exam, task) is not None:
            continue
        monitor = exam.monitors.of_entry(name, schedule, task, say=False)
        if monitor is not None:
            yield f"beat entry {name!r}", monitor


def unusable_schedules(exam: Examination) -> Iterator[Trouble]:
    """CG510: schedules that Beat cannot take."""
    for name, schedule, _ in _entries(exam):
        if not _beat_takes(schedule):
            yield Trouble(
                f"the schedule of beat entry {name!r}",
                schedule,
                "Beat does not start with it",
                "give seconds, a timedelta, or a schedule such as crontab(hour=4, minute=0)",
            )


def _beat_takes(schedule: Any) -> bool:
    if isinstance(schedule, (int, float)):
        try:
            timedelta(seconds=schedule)
        except (ValueError, OverflowError):  # NaN, infinity
            return False
        return True
    return isinstance(schedule, timedelta) or hasattr(schedule, "is_due")


def _entries(exam: Examination) -> Iterator[tuple[str, Any, Any]]:
    """Beat entries of the configuration: name, schedule, and the name of the task."""
    for name, entry in (exam.app.conf.beat_schedule or {}).items():
        given = entry if isinstance(entry, dict) else vars(entry)
        yield str(name), given.get("schedule"), given.get("task")


def _own(exam: Examination, task: Any) -> Monitor | None:
    try:
        return exam.monitors.own(task)
    except SettingsError:
        return None  # CG501


def dropped_check_ins(exam: Examination) -> Iterator[Trouble]:
    """CG504: hooks of Sentry's client that take check-ins away."""
    if not _asks_sentry(exam):
        return
    from celery_graceful.monitors.sentry import drops_check_ins

    if drops_check_ins():
        yield Trouble(
            "before_send of sentry_sdk.init",
            "returns None for a check-in",
            "no check-in reaches Sentry: monitors say that runs are missing (or an event "
            "processor does that)",
            'return the event where event.get("type") == "check_in"',
        )


def slow_shutdown(exam: Examination) -> Iterator[Trouble]:
    """CG505: a client of Sentry's that waits for longer than there is time."""
    get_client = loaded("sentry_sdk", "get_client")
    if get_client is None or not get_client().is_active():
        return
    d = exam.deadlines
    timeout = get_client().options.get("shutdown_timeout") or 0
    if timeout > d.grace - d.hard:
        yield Trouble(
            "shutdown_timeout of sentry_sdk.init",
            timeout,
            f"where Sentry is away, its exit takes longer than the {d.grace - d.hard:.3g} s from "
            "the hard deadline to SIGKILL",
            f"set it to {(d.grace - d.hard) / 2:.2g} or less",
        )


def silent_monitors(exam: Examination) -> Iterator[Trouble]:
    """CG506: monitors that nobody reports to."""
    if exam.monitor_faults:
        return  # CG501
    for thing, why in what_is_silent(exam.monitors):
        yield Trouble(thing, "silent", why, "set one of them up, where the app is made")


def two_reporters(exam: Examination) -> Iterator[Trouble]:
    """CG507: beat entries that Sentry's own integration reports as well."""
    if exam.monitor_faults:
        return  # CG501
    for thing, why in who_reports(exam.monitors):
        yield Trouble(thing, True, why, "turn one of them off, or leave it if you mean it")


def unknown_tasks(exam: Examination) -> Iterator[Trouble]:
    """CG508: monitors of tasks that there are not."""
    if exam.import_error is not None:
        return  # CG400: nobody knows all names
    for thing, why in who_is_unknown(exam.monitors):
        yield Trouble(thing, "no such task", why, "write the name of one, or take it out")


def impatient_monitors(exam: Examination) -> Iterator[Trouble]:
    """CG509: monitors that call before a task's time is up."""
    for task in exam.tasks:
        own = _own(exam, task)
        limit = exam.any_limit(task)
        if own is not None and own.max_runtime and limit and own.max_runtime * 60 < limit:
            yield Trouble(
                f"max_runtime of the monitor {own.slug}",
                own.max_runtime,
                f"{task.name} may run for {limit:g} s: its monitor says that it has failed while "
                "it still runs",
                "leave max_runtime out, so that it comes from the time limit, or shorten the limit",
            )


def _asks_sentry(exam: Examination) -> bool:
    """Whether check-ins go there, by a client that is set up."""
    get_client = loaded("sentry_sdk", "get_client")
    if get_client is None or exam.monitor_faults or not exam.monitors.closes_sentrys:
        return False
    return bool(get_client().is_active() and get_client().transport is not None)


CHECKS = (
    Check("CG501", Severity.ERROR, unfit_monitors),
    Check("CG502", Severity.NOTE, renamed_entries),
    Check("CG503", Severity.WARNING, schedules),
    Check("CG504", Severity.ERROR, dropped_check_ins),
    Check("CG505", Severity.WARNING, slow_shutdown),
    Check("CG506", Severity.WARNING, silent_monitors),
    Check("CG507", Severity.NOTE, two_reporters),
    Check("CG508", Severity.WARNING, unknown_tasks),
    Check("CG509", Severity.WARNING, impatient_monitors),
    Check("CG510", Severity.ERROR, unusable_schedules),
)
