"""Agents of monitoring, as this process has imported them."""

from __future__ import annotations

import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
from celery import Celery

from celery_graceful import Graceful
from celery_graceful.system import telemetry


def test_an_interruption_is_no_error_to_new_relic(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("newrelic.core.config")
    collector = SimpleNamespace(ignore_classes=["celery.exceptions:Retry"])
    settings = SimpleNamespace(error_collector=collector)
    monkeypatch.setattr(module, "global_settings", lambda: settings, False)
    monkeypatch.setitem(sys.modules, "newrelic.core.config", module)
    for _ in range(2):
        Graceful(Celery("app", set_as_current=False))
    assert collector.ignore_classes == [
        "celery.exceptions:Retry",
        "celery_graceful.exceptions:Interrupted",
        "celery_graceful.exceptions:ShutdownTimeLimit",
        "celery_graceful.exceptions:TaskInterrupted",
    ]


@pytest.mark.parametrize("known", [{}, {"global_settings": None}, {"global_settings": object}])
def test_one_that_is_being_imported_or_has_changed(
    known: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("newrelic.core.config")
    vars(module).update(known)
    monkeypatch.setitem(sys.modules, "newrelic.core.config", module)
    telemetry.no_errors(KeyError)


def test_one_that_cannot_send(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Tracer:
        def flush(self) -> None:
            raise OSError("no such host")

    module = ModuleType("ddtrace.trace")
    monkeypatch.setattr(module, "tracer", Tracer(), False)
    monkeypatch.setitem(sys.modules, "ddtrace.trace", module)
    monkeypatch.setattr(telemetry, "PATIENCE", 60.0)
    telemetry.flush(60)
    assert "no such host" in caplog.text


def test_whose_threads_may_have_something_to_send(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sends(threading.Thread):
        pass

    def running(*threads: threading.Thread) -> bool:
        monkeypatch.setattr(threading, "enumerate", lambda: [threading.current_thread(), *threads])
        return telemetry.others_may_send()

    ours = threading.Thread(target=telemetry.flush)
    theirs = type("Exports", (threading.Thread,), {"__module__": "opentelemetry.sdk"})()
    assert not running()
    assert not running(ours, theirs)
    assert running(ours, Sends())
    assert running(threading.Thread(target=test_one_that_cannot_send))
    assert running(threading.Timer(60, telemetry.flush, [1]))
