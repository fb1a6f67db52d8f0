"""Findings of the doctor that are about the grace period."""

from __future__ import annotations

from typing import Any

import pytest
from billiard import common
from celery import Celery
from prometheus_client import CollectorRegistry

from celery_graceful import GracefulTask, Monitor
from celery_graceful.metrics import extras
from tests.support.doctor import Case, add_task, found, graceful_app, look


def app_with(
    base: type | None = None, conf: dict[str, Any] | None = None, **options: Any
) -> Celery:
    return add_task(graceful_app(**(conf or {})), base=base, **options)


REGISTRY: dict[str, Any] = {"graceful_metrics": ["prometheus"]}
THEIRS = CollectorRegistry()

KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}

CASES = [
    Case(
        "CG101",
        lambda: app_with(
            GracefulTask, {"graceful_lease_ttl": 0.1}, max_interruptions=-1, max_run_time=0
        ),
        lambda: app_with(GracefulTask, {"graceful_lease_ttl": 5.0}, max_interruptions=1),
        ["graceful_lease_ttl", "one.max_interruptions", "one.max_run_time"],
        "error",
    ),
    Case(
        "CG101",
        lambda: app_with(conf={**REGISTRY, "graceful_prometheus_registry": "nowhere:registry"}),
        lambda: app_with(conf={**REGISTRY, "graceful_prometheus_registry": f"{__name__}:THEIRS"}),
        ["graceful_prometheus_registry"],
        "error",
    ),
    Case(
        "CG102",
        graceful_app,
        graceful_app,
        ["the grace period"],
        "note",
        {"environ": KUBERNETES},
        {"environ": {**KUBERNETES, "TERMINATION_GRACE_PERIOD_SECONDS": "30"}},
    ),
    Case(
        "CG103",
        lambda: app_with(time_limit=26),
        lambda: app_with(time_limit=25),
        ["one.time_limit"],
        "warning",
    ),
    Case(
        "CG104",
        lambda: app_with(conf={"task_soft_time_limit": 21}),
        lambda: app_with(conf={"task_soft_time_limit": 20}),
        ["task_soft_time_limit"],
        "warning",
    ),
    Case(
        "CG105",
        lambda: app_with(monitor=Monitor("one", max_runtime=1)),
        lambda: app_with(monitor=Monitor("one")),
        ["max_runtime of the monitor one"],
        "note",
    ),
    Case(
        "CG106",
        lambda: graceful_app(graceful_grace_period=30),
        lambda: graceful_app(graceful_grace_period=20),
        ["--prestop"],
        "error",
        {"prestop": 10, "environ": {"TERMINATION_GRACE_PERIOD_SECONDS": "30"}},
    ),
    Case(
        "CG107",
        lambda: graceful_app(worker_soft_shutdown_timeout=10),
        graceful_app,
        ["worker_soft_shutdown_timeout"],
        "warning",
    ),
    Case(
        "CG108",
        graceful_app,
        graceful_app,
        ["the grace period"],
        "error",
        {"environ": {"GRACEFUL_GRACE_PERIOD": "30", "TERMINATION_GRACE_PERIOD_SECONDS": "10"}},
        {"environ": {"GRACEFUL_GRACE_PERIOD": "10", "TERMINATION_GRACE_PERIOD_SECONDS": "10"}},
    ),
]


def test_a_graceful_task_is_cut_at_no_bad_place() -> None:
    (limit,) = found(app_with(GracefulTask, time_limit=100), "CG103")
    assert limit.severity.value == "note"
    assert "goes back to its queue" in limit.why


def test_a_short_hook_costs_the_exit_alone() -> None:
    (hook,) = found(graceful_app(), "CG106", prestop=1)
    assert hook.severity.value == "warning"
    assert hook.mend == "set graceful_grace_period = 29"


def test_a_hook_takes_from_what_the_platform_gives() -> None:
    environ = {"TERMINATION_GRACE_PERIOD_SECONDS": "120", "GRACEFUL_GRACE_PERIOD": "115"}
    assert found(graceful_app(), "CG106", prestop=5, environ=environ) == []
    environ["GRACEFUL_GRACE_PERIOD"] = "116"
    (hook,) = found(graceful_app(), "CG106", prestop=5, environ=environ)
    assert hook.mend == "set graceful_grace_period = 115"


def test_what_a_setting_says_is_held_against_the_platform() -> None:
    app = graceful_app(graceful_grace_period=30)
    (told,) = found(app, "CG108", environ={"TERMINATION_GRACE_PERIOD_SECONDS": "29"})
    assert told.severity.value == "warning"
    assert "(graceful_grace_period), and its platform gives 29 s" in told.why
    assert found(app, "CG108", environ={"TERMINATION_GRACE_PERIOD_SECONDS": "10"}, prestop=1) == []
    # A default, which whoever has said 60 has changed.
    environ = {**KUBERNETES, "GRACEFUL_GRACE_PERIOD": "60"}
    assert found(graceful_app(), "CG108", environ=environ) == []


def test_sigterm_is_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "REMAP_SIGTERM", "SIGQUIT")
    assert [one.value for one in found(graceful_app(), "CG107")] == ["SIGQUIT"]


def test_what_depends_on_the_settings_is_not_checked_without() -> None:
    findings, unchecked = look(graceful_app(graceful_grace_period=-1), "CG103")
    assert findings == []
    assert unchecked == {"what depends on the settings": "graceful_grace_period cannot be used"}


def test_an_extra_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    (finding,) = found(app_with(conf={"graceful_metrics": ["otel"]}), "CG101")
    assert (finding.thing, finding.value) == ("graceful_metrics", "otel")
    assert finding.mend.endswith("pip install 'celery_graceful[otel]'")
