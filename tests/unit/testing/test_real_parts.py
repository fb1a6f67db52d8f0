"""What the fixtures for real workers say where something is wrong; and the server for check-ins."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from celery_graceful.monitors import Monitor
from celery_graceful.monitors.healthchecks import HealthchecksReporter
from celery_graceful.monitors.report import Report
from celery_graceful.store.store import StoreAway
from celery_graceful.testing import (
    FakeMonitor,
    GracefulWorker,
    NotInTime,
    SentCheckIn,
    StopReport,
    leftovers,
)
from celery_graceful.testing.leftovers import Broker
from celery_graceful.testing.worker_process import _STOPPED, LIMIT
from celery_graceful.testing.workers import Workers, forget_connections

app = Celery("real_parts", broker="memory://", set_as_current=False)
app.conf.task_default_queue = "real_parts"  # all of this process share one memory


@pytest.fixture(scope="module")
def ended() -> Iterator[GracefulWorker]:
    """One that ends at once: there is no such app."""
    worker = GracefulWorker("nowhere_to_be_found:app", Broker("memory://"))
    worker.wait()
    yield worker
    worker.close()


def test_a_worker_that_ended_is_not_waited_for(ended: GracefulWorker) -> None:
    with pytest.raises(NotInTime) as failed:
        ended.wait_for(r"ready\.$")
    text = str(failed.value)
    assert text.startswith(r"waited for the line 'ready\\.$' of <worker w1@test, pid ")
    assert "ended with 1; it wrote\n" in text
    assert "nowhere_to_be_found" in text
    assert not ended.running


def test_it_says_what_it_waited_for(ended: GracefulWorker) -> None:
    def all_is_paid() -> bool:
        return False

    with pytest.raises(NotInTime, match=r"waited for .*all_is_paid to return .* not in 0\.1 s"):
        ended.wait_for(all_is_paid, timeout=0.1)


def test_one_that_ended_is_ended_again(ended: GracefulWorker) -> None:
    ended.freeze()
    ended.thaw()
    ended.kill()
    assert ended.report is None
    with pytest.raises(NotInTime, match="its report"):
        ended.stop()


def test_what_a_report_is_read_from() -> None:
    """The line that a worker writes: `celery_graceful.worker.report`."""
    line = "Stopped: 1 finished, 2 interrupted, 3 given up, 4 released; took 1.6 s, 28.4 s of"
    found = _STOPPED.search(line)
    assert found is not None
    assert list(found.groupdict()) == list(StopReport.__dataclass_fields__)
    assert found.groups() == ("1", "2", "3", "4", "1.6")


def test_an_app_is_found_where_it_is() -> None:
    from celery_graceful.testing.workers import _path_of

    assert _path_of(app) == f"{__name__}:app"
    with pytest.raises(LookupError, match='say where it is, such as "shop:app"'):
        _path_of(Celery("nowhere", set_as_current=False))


@pytest.mark.parametrize("given", [3, None, test_an_app_is_found_where_it_is])
def test_what_is_no_app_is_refused(given: Any) -> None:
    workers = Workers("memory://", ours=False)
    try:
        with pytest.raises(TypeError, match=r"graceful_worker\(.*\): give the app, or where it is"):
            workers(given)
    finally:
        workers.close()


def test_an_app_sends_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def where() -> list[Any]:
        connections = app.pool.connection, app.amqp.producer_pool.connections.connection
        return [*(each.transport_cls for each in connections), type(app.backend).__name__]

    app.conf.result_backend = "cache+memory://"
    assert where() == ["memory", "memory", "CacheBackend"]
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://localhost:1/7")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "redis://localhost:1/7")
    forget_connections(app)
    assert where() == ["redis", "redis", "RedisBackend"]
    monkeypatch.undo()
    forget_connections(app)
    assert where() == ["memory", "memory", "CacheBackend"]


def test_what_is_left_is_named() -> None:
    workers = Workers("memory://", ours=False)
    try:
        workers._apps.append(app)
        workers.assert_nothing_left(timeout=0)
        app.send_task("some.task")
        with pytest.raises(AssertionError, match="1 messages in the queue real_parts"):
            workers.assert_nothing_left(timeout=0)
    finally:
        app.control.purge()
        workers.close()


def test_a_redis_that_takes_its_time_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    broker, asked = Broker("memory://"), 0

    def kept(self: Broker) -> list[str]:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise StoreAway("redis: Timeout reading from socket")
        return ["a claim"]

    monkeypatch.setattr(Broker, "_kept", kept)
    broker.is_redis = True
    assert broker.left(set()) == ["a claim"]
    monkeypatch.setattr(leftovers, "PATIENCE", 0.0)
    asked = -1000
    with pytest.raises(StoreAway):
        broker.left(set())
    broker.close()


def test_check_ins_are_kept() -> None:
    monitor = FakeMonitor()
    try:
        reporter = HealthchecksReporter(monitor.ping_url, LIMIT)
        for status in ("in_progress", "ok", "error"):
            report = Report("night", "id", status, None, Monitor("night"), None, "run")
            (reporter.start if status == "in_progress" else reporter.finish)(report)
        assert monitor.statuses("night") == ["in_progress", "ok", "error"]
        assert monitor.wait_for("night", "ok") == SentCheckIn("night", "id", "ok")
        body = {"monitor_slug": "day", "check_in_id": "2", "status": "ok", "duration": 3.0}
        item = json.dumps(body).encode()
        head = json.dumps({"type": "check_in", "length": len(item)}).encode()
        url = monitor.ping_url.replace("/ping", "/api/1/envelope/")
        envelope = b"{}\n" + b'{"type": "event"}\n{}\n' + head + b"\n" + item + b"\n"
        urllib.request.urlopen(url, envelope, timeout=LIMIT).close()
        assert monitor.wait_for("day", "ok") == SentCheckIn("day", "2", "ok", 3.0)
        with pytest.raises(AssertionError, match="waited for 'error' of 'day': not in 0 s"):
            monitor.wait_for("day", "error", timeout=0)
    finally:
        monitor.close()
