"""Findings of the doctor that are about monitors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sentry_sdk
from celery import Celery
from celery.beat import Scheduler
from celery.schedules import crontab
from sentry_sdk.integrations.celery import CeleryIntegration

from celery_graceful import Graceful, Monitor
from tests.support.doctor import Case, add_task, found, graceful_app, run

PINGED = {"graceful_healthchecks_url": "http://127.0.0.1:9/key"}


def app_with(conf: dict[str, Any] | None = None, **options: Any) -> Celery:
    return add_task(graceful_app(**{**PINGED, **(conf or {})}), **options)


def beat_with(name: str, schedule: Any) -> Celery:
    entries = {name: {"task": "one", "schedule": schedule}}
    return app_with({"graceful_monitor_beat": True, "beat_schedule": entries})


def named(task: str) -> Celery:
    app = app_with()
    Graceful(app).monitor(task, "nightly")
    return app


def colliding() -> Celery:
    app = app_with({"graceful_monitor_reporters": ["nobody"]}, monitor="same")
    return add_task(add_task(app, "two", monitor="same"), "three", monitor=3)


CASES = [
    Case(
        "CG501",
        colliding,
        lambda: add_task(app_with(monitor="same"), "two", monitor="other"),
        ["monitor", "three.monitor", "graceful_monitor_reporters"],
        "error",
    ),
    Case(
        "CG502",
        lambda: beat_with("clean.up", 60),
        lambda: beat_with("clean-up", 60),
        ["the monitor of beat entry 'clean.up'"],
        "note",
    ),
    Case(
        "CG503",
        lambda: beat_with("often", timedelta(seconds=90)),
        lambda: beat_with("nightly", crontab(hour=4, minute=0)),
        ["the schedule of beat entry 'often'"],
        "warning",
    ),
    Case(
        "CG506",
        lambda: app_with({"graceful_healthchecks_url": None}, monitor="nightly"),
        lambda: app_with(monitor="nightly"),
        ["the monitors nightly"],
        "warning",
    ),
    Case(
        "CG508",
        lambda: named("two"),
        lambda: named("one"),
        ["Graceful.monitor('two', 'nightly')"],
        "warning",
    ),
    Case(
        "CG509",
        lambda: app_with(monitor=Monitor("nightly", max_runtime=1), time_limit=61),
        lambda: app_with(monitor=Monitor("nightly", max_runtime=1), time_limit=60),
        ["max_runtime of the monitor nightly"],
        "warning",
    ),
    Case(
        "CG510",
        lambda: beat_with("nightly", "0 4 * * *"),
        lambda: beat_with("nightly", 60),
        ["the schedule of beat entry 'nightly'"],
        "error",
    ),
    Case(
        "CG510",
        lambda: beat_with("nightly", float("nan")),
        lambda: beat_with("nightly", 60.5),
        ["the schedule of beat entry 'nightly'"],
        "error",
    ),
    Case(
        "CG510",
        lambda: beat_with("nightly", float("inf")),
        lambda: beat_with("nightly", 0),
        ["the schedule of beat entry 'nightly'"],
        "error",
    ),
]


def test_beat_does_not_start() -> None:
    """As the doctor says; nothing else stumbles over it."""
    app = beat_with("ten", "ten")
    assert found(app, "CG503") == found(app, "CG502") == []
    with pytest.raises(AttributeError):
        Scheduler(app).merge_inplace(app.conf.beat_schedule)
    status, said = run(app)
    assert status == 1
    assert "could not be checked: CG" not in said


def test_the_schedule_of_a_task_of_its_own() -> None:
    both_days = crontab(minute=0, hour=0, day_of_month=1, day_of_week=1)
    (finding,) = found(app_with(monitor=Monitor("nightly", schedule=both_days)), "CG503")
    assert finding.thing == "the schedule of the monitor nightly"


@contextmanager
def client(**options: Any) -> Iterator[None]:
    """Sentry's client, in this thread."""
    with sentry_sdk.isolation_scope() as scope:
        made = sentry_sdk.Client(
            dsn="http://key@127.0.0.1:9/1", default_integrations=False, **options
        )
        scope.set_client(made)
        yield
        made.close(timeout=0)


def test_cg504_before_send() -> None:
    with client(before_send=lambda event, hint: None):
        assert [one.code for one in found(app_with(), "CG504")] == ["CG504"]
        assert found(app_with({"graceful_monitor_reporters": ["healthchecks"]}), "CG504") == []
    kept = []
    with client(before_send=lambda event, hint: kept.append(event) or event):
        assert found(app_with(), "CG504") == []
    assert [event["type"] for event in kept] == ["check_in"]
    assert found(app_with(), "CG504") == [], "there is no client"


def test_cg505_shutdown_timeout() -> None:
    with client(shutdown_timeout=6):
        assert [one.value for one in found(app_with(), "CG505")] == [6]
    with client(shutdown_timeout=5):
        assert found(app_with(), "CG505") == []


def test_cg507_two_reporters(monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_with({"graceful_monitor_beat": True})
    assert found(app, "CG507") == []
    integration = CeleryIntegration(monitor_beat_tasks=True)
    monkeypatch.setattr(sentry_sdk.Client, "get_integration", lambda self, kind: integration)
    with client():
        (finding,) = found(app, "CG507")
    assert "Sentry's monitor_beat_tasks" in finding.thing
