"""Apps that the doctor looks at, in this process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace as Fake
from typing import Any
from unittest import mock

from celery import Celery
from click.testing import CliRunner

from celery_graceful import Graceful
from celery_graceful.cli.doctor import doctor
from celery_graceful.doctor.examination import Examination
from celery_graceful.doctor.findings import Finding
from celery_graceful.doctor.report import CHECKS, examine

__all__ = ["Alone", "Case", "add_task", "found", "graceful_app", "look", "run"]

_numbers = itertools.count()


class Alone(Celery):
    """Has the tasks that it was given, and none that other apps share."""

    def finalize(self, auto: bool = False) -> None:
        with mock.patch("celery.app.base._announce_app_finalized"):
            super().finalize(auto)


def graceful_app(broker: str = "memory://", backend: str | None = None, **conf: Any) -> Celery:
    """An app of its own: no task of another test is in it."""
    app = Alone(f"doctor{next(_numbers)}", broker=broker, backend=backend, set_as_current=False)
    app.conf.update(conf)
    Graceful(app)
    return app


def add_task(app: Celery, name: str = "one", **options: Any) -> Celery:
    """The app, with a task that does nothing."""

    @app.task(name=name, shared=False, **options)
    def task() -> None: ...

    return app


def look(app: Celery, code: str, **options: Any) -> tuple[list[Finding], dict[str, str]]:
    """What one check finds, and what could not be checked."""
    options.setdefault("environ", {"GRACEFUL_GRACE_PERIOD": "30"})
    options.setdefault("root", Path("/nonexistent"))
    exam = Examination(app, **options)
    report = examine(exam, tuple(check for check in CHECKS if check.code == code))
    assert code not in report.unchecked, report.unchecked
    return list(report.findings), report.unchecked


def found(app: Celery, code: str, **options: Any) -> list[Finding]:
    """What one check finds, which could look everywhere."""
    findings, unchecked = look(app, code, **options)
    assert not unchecked, unchecked
    return findings


def run(app: Celery, *args: str, **env: str) -> tuple[int, str]:
    """Exit status and output of the command."""
    runner = CliRunner(env=env or {"GRACEFUL_GRACE_PERIOD": "30"})
    ended = runner.invoke(doctor, args, obj=Fake(app=app), catch_exceptions=False)
    return ended.exit_code, ended.output


@dataclass(frozen=True)
class Case:
    """Two apps: one that a check finds something in, and one that it does not.

    Attributes:
        code: Of the check.
        bad: Makes the one.
        good: Makes the other.
        things: That are named, all of them.
        severity: Of the first finding.
        options: Of the examination of both; or those of ``bad`` alone, and of ``good``.
    """

    code: str
    bad: Callable[[], Celery]
    good: Callable[[], Celery]
    things: Iterable[str]
    severity: str
    options: dict[str, Any] = field(default_factory=dict)
    good_options: dict[str, Any] | None = None

    def check(self) -> None:
        """Both are as they should be."""
        findings = found(self.bad(), self.code, **self.options)
        assert [one.thing for one in findings] == list(self.things)
        assert findings[0].severity.value == self.severity
        assert all(one.why and one.mend for one in findings)

    def check_good(self) -> None:
        options = self.options if self.good_options is None else self.good_options
        assert found(self.good(), self.code, **options) == []
