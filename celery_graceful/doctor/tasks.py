"""Options of tasks that do not go with what a graceful task is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery import Task

from celery_graceful.deliveries.custom_strategies import has_own_strategy
from celery_graceful.doctor.examination import Examination
from celery_graceful.doctor.findings import Check, Severity, Trouble
from celery_graceful.system.describe import describe
from celery_graceful.task.base import GracefulTask
from celery_graceful.task.default_base import who_is_plain
from celery_graceful.task.misspelt import misspelt_options

__all__ = ["CHECKS"]

#: Options by which Celery decides whether a failure is acknowledged; the first one for both kinds,
#: and deprecated where there are others.
BOTH, FAILURE, TIMEOUT = "acks_on_failure_or_timeout", "acks_on_failure", "acks_on_timeout"


def _graceful(exam: Examination) -> list[Any]:
    return [task for task in exam.tasks if isinstance(task, GracefulTask)]


def unimportable(exam: Examination) -> Iterator[Trouble]:
    """CG400: modules of the app that cannot be imported."""
    if exam.import_error is not None:
        yield Trouble(
            "the app's modules",
            describe(exam.import_error),
            "no worker starts with it, and no task could be checked",
            "import them in a shell, and mend what it says",
        )


def acknowledged_early(exam: Examination) -> Iterator[Trouble]:
    """CG401: graceful tasks that are taken off their queue before they start."""
    for task in _graceful(exam):
        if not task.acks_late:
            yield Trouble(
                f"{task.name}.acks_late",
                task.acks_late,
                "kill -9 of its worker loses it, and what is interrupted comes back as a copy, at "
                "the tail of its queue",
                "leave it out: a GracefulTask is acknowledged late",
            )


def lost_with_its_child(exam: Examination) -> Iterator[Trouble]:
    """CG402: graceful tasks that do not come back when a child dies."""
    for task in _graceful(exam):
        if task.acks_late and not task.reject_on_worker_lost:
            yield Trouble(
                f"{task.name}.reject_on_worker_lost",
                task.reject_on_worker_lost,
                "when its pool process dies, by the OOM killer for instance, it fails and does not "
                "come back",
                "leave it out: a GracefulTask comes back, and poison_limit bounds how often",
            )


def rejected_failures(exam: Examination) -> Iterator[Trouble]:
    """CG403: tasks whose failures are not acknowledged."""
    for task in exam.tasks:
        if not task.acks_late:
            continue
        for option, what in _acks(task).items():
            if not getattr(task, option):
                yield Trouble(f"{task.name}.{option}", False, what, f"set {option} = True")


def _acks(task: Any) -> dict[str, str]:
    """The options that Celery asks this task for, and what they do when they are off."""
    drops = "a failed run is rejected: its message is dropped, or dead-lettered on RabbitMQ"
    again = "a run that passes its hard time limit comes back, and does so each time"
    if hasattr(task, FAILURE):
        return {FAILURE: drops, TIMEOUT: again}
    return {BOTH: f"{drops}; {again}"}


def deprecated_acks(exam: Examination) -> Iterator[Trouble]:
    """CG404: the option that Celery 5.7 has replaced by two."""
    conf = exam.app.conf
    setting = f"task_{BOTH}"
    if not hasattr(Task, FAILURE):
        return  # before 5.7 there is nothing else
    general = conf.get(setting)
    mend = f"set {{0}}{FAILURE} and {{0}}{TIMEOUT} instead"
    if general is not True:
        yield Trouble(setting, general, "it is deprecated", mend.format("task_"))
    for task in exam.tasks:
        value = getattr(task, BOTH)
        if value != general:
            yield Trouble(f"{task.name}.{BOTH}", value, "it is deprecated", mend.format(""))


def contradicting_acks(exam: Examination) -> Iterator[Trouble]:
    """CG405: options of which one takes the other's effect away."""
    for task in exam.tasks:
        both = getattr(task, BOTH)
        for option in [name for name in (FAILURE, TIMEOUT) if hasattr(task, name)] or [BOTH]:
            value = getattr(task, option)
            if value and not both:
                yield Trouble(
                    f"{task.name}.{BOTH}",
                    both,
                    f"it has no effect on this: {option} = {value} says the opposite",
                    f"take {BOTH} out",
                )
            elif not value and not task.acks_late:
                yield Trouble(
                    f"{task.name}.{option}",
                    value,
                    "it has no effect: the task is acknowledged before it starts",
                    "set acks_late = True, or take it out",
                )
        if task.reject_on_worker_lost and getattr(task, "retry_on_worker_lost", False):
            yield Trouble(
                f"{task.name}.retry_on_worker_lost",
                True,
                "it goes before reject_on_worker_lost: a death is a retry, and at max_retries "
                f"({task.max_retries}) the task fails",
                "leave it out: reject_on_worker_lost sends it back, and poison_limit bounds how "
                "often",
            )


def came_too_late(exam: Examination) -> Iterator[Trouble]:
    """CG406: tasks that ``graceful_default_task`` was meant for."""
    for name in who_is_plain(exam.app):
        yield Trouble(
            name,
            "a plain task",
            "graceful_default_task came too late for it: the base of the app's tasks was made, or "
            "set, before",
            "set it, and say Graceful(app), before the first task is defined, and give a base of "
            "your own as Celery(task_cls=...); or give it base=GracefulTask",
        )


def own_strategies(exam: Examination) -> Iterator[Trouble]:
    """CG407: tasks whose messages somebody else buffers, as celery-batches does."""
    for task in exam.tasks:
        if has_own_strategy(task):
            yield Trouble(
                f"{task.name}.Strategy",
                str(task.Strategy),
                "its messages are run many at a time, by others: a batch that runs is left alone "
                "until the hard deadline and then given up whole, without interrupts, checkpoints "
                "or check-ins",
                "keep batches short, or send single tasks (docs/works-with.md)",
            )


def greedy_workers(exam: Examination) -> Iterator[Trouble]:
    """CG408: workers that take messages which then wait behind a long task."""
    conf = exam.app.conf
    multiplier = conf.worker_prefetch_multiplier
    if getattr(conf, "worker_disable_prefetch", False) or multiplier == 1:
        return
    setting = "worker_prefetch_multiplier"
    if multiplier == 0:
        yield Trouble(
            setting,
            0,
            "a worker takes all that is in its queues, and others have nothing to do; at a stop "
            "all of that has to go back",
            "set it to 1, or a small number for short tasks",
            Severity.WARNING,
        )
        return
    for task in exam.tasks:
        limit = exam.any_limit(task)
        if task.acks_late and limit > exam.deadlines.hard:
            yield Trouble(
                setting,
                multiplier,
                f"up to {multiplier} messages wait at each process behind a run of {task.name}, "
                f"which may take {limit:g} s, though another worker may be idle",
                "set it to 1, or give long tasks a queue and workers of their own",
            )
            return


def misspelt(exam: Examination) -> Iterator[Trouble]:
    """CG409: options of graceful tasks whose names are almost right."""
    for found in misspelt_options(exam.tasks):
        yield Trouble(
            f"{found.task}.{found.option}",
            found.value,
            "there is no such option, and it has no effect",
            f"did you mean {found.meant}? Else nothing: an attribute of your own is left alone",
        )


CHECKS = (
    Check("CG400", Severity.ERROR, unimportable),
    Check("CG401", Severity.WARNING, acknowledged_early),
    Check("CG402", Severity.WARNING, lost_with_its_child),
    Check("CG403", Severity.NOTE, rejected_failures),
    Check("CG404", Severity.NOTE, deprecated_acks),
    Check("CG405", Severity.WARNING, contradicting_acks),
    Check("CG406", Severity.WARNING, came_too_late),
    Check("CG407", Severity.NOTE, own_strategies),
    Check("CG408", Severity.NOTE, greedy_workers),
    Check("CG409", Severity.WARNING, misspelt),
)
