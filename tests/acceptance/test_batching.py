"""Tasks that hand many messages to the pool at once, by a strategy of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker, wait_until, wait_until_heard

pytestmark = pytest.mark.slow


def holdings(app: Celery) -> list[Any]:
    """What the worker has not heard the end of."""
    (answer,) = app.control.broadcast("graceful_status", reply=True, timeout=TIMEOUT, limit=1)
    (told,) = answer.values()
    tasks: list[Any] = told["tasks"]
    return tasks


@pytest.mark.parametrize(
    ("pool", "broker", "name"),
    [
        ("prefork", "redis", "late"),
        ("prefork", "rabbitmq", "early"),
        ("threads", "redis", "early"),
        ("gevent", "redis", "late"),
    ],
    indirect=["broker"],
)
def test_batches(pool: str, broker: Broker, name: str, app: Celery, tmp_path: Path) -> None:
    """What has been processed has left, what runs ends, and what is buffered goes back once."""
    hold, flush = tmp_path / "hold", tmp_path / "flush"
    env = {**broker.env, "GRACE": "60"}
    env |= {"HOLD": str(hold), "FLUSH": str(flush), "CONF_worker_prefetch_multiplier": "10"}
    with Worker("tests.apps.batching", pool=pool, env=env) as worker:
        worker.ready()
        wait_until_heard(app)
        ids = [f"{name}-{number}" for number in range(8)]
        for task_id in ids[:3]:
            app.send_task(name, task_id=task_id)
        worker.wait_line(">> .* ended")
        wait_until(lambda: not holdings(app), "the worker has heard of the end of the first batch")
        wait_until(lambda: not broker.held(), "it is acknowledged")
        hold.touch()
        for task_id in ids[3:]:
            app.send_task(name, task_id=task_id)
        worker.wait_line(">> .* buffered", 8)
        worker.wait_line(">> .* holds")
        worker.term()
        line = worker.wait_line("Stopping, asked for by")
        assert [each for each in ids if each in line] == ids[3:6], line
        assert sorted(broker.drain_queue(app, at_least=2)) == ids[6:], "while the second batch runs"
        flush.touch()
        worker.wait_line(">> .* flushed 2")
        hold.unlink()
        assert worker.wait() == 0
        assert worker.took < 30, "of 60 s of grace"
        ran = [found[1].split() for found in worker.find(r">> .* ran (.*)")]
        assert ran == [ids[:3], ids[3:6]]
        assert worker.count("Stopped: 3 finished, 0 interrupted, 0 given up, 2 released") == 1
    assert broker.drain_queue(app) == []
    assert broker.held() == 0


@pytest.mark.parametrize(("broker", "name"), [("redis", "early")], indirect=["broker"])
def test_a_batch_that_does_not_end(broker: Broker, name: str, app: Celery, tmp_path: Path) -> None:
    """It is given up whole."""
    hold = tmp_path / "hold"
    hold.touch()
    env = {**broker.env, "GRACE": "60", "CONF_graceful_hard_deadline": "2.0"}
    env |= {"HOLD": str(hold), "FLUSH": str(tmp_path / "flush")}
    with Worker("tests.apps.batching", env=env) as worker:
        worker.ready()
        ids = [app.send_task(name).id for _ in range(3)]
        worker.wait_line(">> .* holds")
        worker.term()
        assert worker.wait() == 0
        assert worker.count("Stopped: 0 finished, 0 interrupted, 3 given up, 0 released") == 1
    assert sorted(broker.drain_queue(app, at_least=3)) == sorted(ids)
