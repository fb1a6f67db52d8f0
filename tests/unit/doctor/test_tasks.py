"""Findings of the doctor that are about options of tasks."""

from __future__ import annotations

from typing import Any

import celery
import pytest
from celery import Celery, Task

from celery_graceful import GracefulTask
from celery_graceful.task.misspelt import say_what_is_misspelt
from tests.support.doctor import Case, add_task, found, graceful_app

#: Celery 5.7 has one option for failures and one for time limits.
TWO_OPTIONS = hasattr(Task, "acks_on_failure")
NAME = "acks_on_failure" if TWO_OPTIONS else "acks_on_failure_or_timeout"


def app_with(base: type = GracefulTask, **options: Any) -> Celery:
    return add_task(graceful_app(), base=base, **options)


def app_importing(module: str) -> Celery:
    return graceful_app(imports=[module])


def late_default() -> Celery:
    app = add_task(graceful_app())
    app.finalize()
    app.conf.graceful_default_task = True
    return app


def early_default() -> Celery:
    return add_task(graceful_app(graceful_default_task=True))


def strategy(*args: Any) -> Any: ...


#: Attributes that users put on tasks: some like options of ours, and nothing that those could be.
THEIR_OWN: dict[str, Any] = {
    "monitors": ["a", "b"],
    "monitored": True,
    "monitoring": "on",
    "monitor": "nightly",
    "max_interruptions": 3,
    "run_time": 5,
    "max_time": 5,
    "min_run_time": 5,
    "interval": 5,
    "max_iterations": 3,
    "max_attempts": 3,
    "checkpoint_table": "jobs",
    "on_monitor": lambda *_: None,
}

CASES = [
    Case(
        "CG400",
        lambda: app_importing("tests.apps.of_nobody"),
        lambda: app_importing("json"),
        ["the app's modules"],
        "error",
    ),
    Case(
        "CG401",
        lambda: app_with(acks_late=False),
        lambda: app_with(Task, acks_late=False),
        ["one.acks_late"],
        "warning",
    ),
    Case(
        "CG402",
        lambda: app_with(reject_on_worker_lost=False),
        app_with,
        ["one.reject_on_worker_lost"],
        "warning",
    ),
    Case(
        "CG403",
        lambda: app_with(**{NAME: False}),
        lambda: app_with(Task, **{NAME: False}),
        [f"one.{NAME}"],
        "note",
    ),
    Case(
        "CG405",
        lambda: app_with(Task, **{NAME: False}),
        lambda: app_with(Task, acks_late=True, **{NAME: False}),
        [f"one.{NAME}"],
        "warning",
    ),
    Case("CG406", late_default, early_default, ["one"], "warning"),
    Case(
        "CG407",
        lambda: app_with(Task, Strategy=f"{__name__}:strategy"),
        app_with,
        ["one.Strategy"],
        "note",
    ),
    Case(
        "CG408",
        lambda: app_with(time_limit=26),
        lambda: app_with(time_limit=24),
        ["worker_prefetch_multiplier"],
        "note",
    ),
    Case(
        "CG409",
        lambda: app_with(max_interuptions=3, checkpoint_intervall=1, monitr="x", max_runtime=9.5),
        lambda: app_with(**THEIR_OWN),
        [
            "one.checkpoint_intervall",
            "one.max_interuptions",
            "one.max_runtime",
            "one.monitr",
        ],
        "warning",
    ),
]
if TWO_OPTIONS:
    CASES += [
        Case(
            "CG404",
            lambda: app_with(acks_on_failure_or_timeout=False),
            lambda: app_with(acks_on_failure=False, acks_on_timeout=False),
            ["one.acks_on_failure_or_timeout"],
            "note",
        )
    ]


def test_a_prefetch_without_end() -> None:
    (finding,) = found(graceful_app(worker_prefetch_multiplier=0), "CG408")
    assert finding.severity.value == "warning"
    assert found(graceful_app(worker_prefetch_multiplier=1), "CG408") == []


@pytest.mark.skipif(not TWO_OPTIONS, reason=f"Celery {celery.__version__} has one option")
def test_options_that_contradict_each_other() -> None:
    app = app_with(acks_on_failure_or_timeout=False, acks_on_failure=True, acks_on_timeout=True)
    assert [one.value for one in found(app, "CG405")] == [False, False]
    assert [one.thing for one in found(app_with(retry_on_worker_lost=True), "CG405")] == [
        "one.retry_on_worker_lost"
    ]
    assert found(app_with(acks_on_failure=False), "CG405") == []


def test_misspelt_options_are_inherited_and_said_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Base(GracefulTask):
        abstract = True
        max_run_tme = 3

    app = add_task(app_with(Base), "two", base=Base, max_interuptions=1)
    say_what_is_misspelt(add_task(app, "plain", max_interuptions=1))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "These options have no effect, did you mean the ones in parentheses? one.max_run_tme "
        "(max_run_time), two.max_interuptions (max_interruptions), two.max_run_tme (max_run_time)"
    )


def test_what_a_base_class_runs_when_it_is_asked_is_not_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is the user's, and may take its time, or raise."""
    asked: list[type] = []

    class Lazy:
        def __get__(self, task: Any, owner: type) -> Any:
            asked.append(owner)
            raise RuntimeError("not configured yet")

    class Base(GracefulTask):
        abstract = True
        max_run_tme = client = Lazy()

    app = app_with(Base)
    asked.clear()
    say_what_is_misspelt(app)
    assert not asked
    assert not caplog.records
