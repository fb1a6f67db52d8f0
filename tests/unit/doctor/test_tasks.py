"""Findings of the doctor that are about options of tasks."""

from __future__ import annotations

from typing import Any

import celery
import pytest
from celery import Celery, Task

from celery_graceful import GracefulTask
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
