"""What has sent a retry, or what replaces it, and does not get to say so: it does not run again."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from celery import Celery

from tests.support.batches import Made
from tests.support.broker import Broker
from tests.support.workers import Worker, wait_until_heard

on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """While it is not there, all that has sent its successor is held up."""
    return tmp_path / "go"


def start(broker: Broker, pool: str, gate: Path, *args: str, **env: str) -> Worker:
    env = {"GRACE": "60", "LAST_RESORT": "20", "GATE": str(gate), **broker.env, **env}
    env.setdefault("CONF_graceful_hard_deadline", "2.0")
    return Worker("tests.apps.gone_on", pool=pool, args=args, env=env)


def hold_up(worker: Worker, app: Celery, name: str) -> str:
    """Have a task send its successor, and wait there; what it says then."""
    worker.ready()
    app.send_task(name, task_id="id")
    return worker.wait_line(">> .* held up")


def goes_on_once(broker: Broker, gate: Path, pool: str, name: str) -> None:
    """Of what is in the queues when the worker has gone."""
    gate.touch()
    assert broker.held() == 0
    with start(broker, pool, gate, "-Q", "celery,later") as worker:
        worker.wait_line(f">> .* started {name}")
        worker.wait_line("Task .* succeeded in")
        worker.term()
        assert worker.wait() == 0
        assert worker.count(">> .* started") == 1


@pytest.mark.parametrize(
    ("pool", "broker"),
    [
        *((pool, "redis") for pool in ("prefork", "spawn", "threads", "gevent", "eventlet")),
        ("prefork", "rabbitmq"),
        ("threads", "rabbitmq"),
        ("gevent", "rabbitmq"),
    ],
    indirect=["broker"],
)
def test_the_hard_deadline(pool: str, broker: Broker, app: Celery, gate: Path) -> None:
    with start(broker, pool, gate) as worker:
        hold_up(worker, app, "again")
        worker.term()
        worker.wait_line(r"again\[id\] has sent its retry, and ends by that: hard deadline")
        assert worker.wait() == 0
        assert worker.count("Stopped: 1 finished, 0 interrupted, 0 given up, 0 released") == 1
        assert worker.count("giv(en|ing) up at|giving up again") == 0
        assert app.AsyncResult("id").state == "RETRY"
    goes_on_once(broker, gate, pool, "again 1")


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_loop_that_is_stuck(broker: Broker, app: Celery, gate: Path) -> None:
    """It cannot acknowledge: the next worker does, which finds in the store that it has ended."""
    store = {"CONF_graceful_store": repr(broker.backend_url)}
    with start(broker, "solo", gate, LAST_RESORT="3", **store) as worker:
        hold_up(worker, app, "again")
        worker.term()
        worker.wait_line(r"again\[id\] has sent its retry, and ends by that: hard deadline")
        assert worker.wait() == 0
    with start(broker, "solo", gate, **store) as worker:
        worker.wait_line(r"again\[id\] has ended with another worker: acknowledged")
        worker.term()
        assert worker.wait() == 0
        assert worker.count(">> .* started") == 0


@on_redis
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_what_is_replaced(pool: str, broker: Broker, app: Celery, gate: Path) -> None:
    with start(broker, pool, gate) as worker:
        hold_up(worker, app, "replaced")
        worker.term()
        worker.wait_line(r"replaced\[id\] has sent its replacement, and ends by that")
        assert worker.wait() == 0
    goes_on_once(broker, gate, pool, "other")


@on_redis
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_could_not_be_sent(pool: str, broker: Broker, app: Celery, gate: Path) -> None:
    """It comes again."""
    with start(broker, pool, gate) as worker:
        hold_up(worker, app, "unsent")
        worker.term()
        worker.wait_line(r"Stopped: 0 finished, 0 interrupted, 1 given up, 0 released")
        assert worker.wait() == 0
    assert broker.drain_queue(app) == ["id"]


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
def test_a_child_that_is_killed(broker: Broker, app: Celery, gate: Path) -> None:
    with start(broker, "prefork", gate) as worker:
        held_up = re.search(r"held up (\d+)", hold_up(worker, app, "again"))
        assert held_up is not None
        os.kill(int(held_up[1]), signal.SIGKILL)
        worker.wait_line(r"again\[id\] has sent its retry, and ends by that: WorkerLostError")
        worker.term()
        assert worker.wait() == 0
        assert worker.count(">> .* started again 0") == 1
        assert worker.count(">> .* told of failure") == 0
    goes_on_once(broker, gate, "prefork", "again 1")


@on_redis
def test_a_hard_time_limit(broker: Broker, app: Celery, gate: Path) -> None:
    """To a batch it is no end: that of the retry is."""
    with start(broker, "prefork", gate, CONF_graceful_hard_deadline="None") as worker:
        worker.ready()
        made = Made(app)
        made.send(app.signature("again", task_id="id"), "id", time_limit=2)
        made.sent()
        worker.wait_line(r"again\[id\] has sent its retry, and ends by that: .*[Tt]ime ?[Ll]imit")
        wait_until_heard(app)
        made.wait(pending=1, failed=0)
        gate.touch()
        app.control.add_consumer("later")
        made.wait(pending=0, succeeded=1, failed=0)
        worker.term()
        assert worker.wait() == 0
        assert worker.count(">> .* started again 0") == 1
        assert worker.count(">> .* told of failure") == 0
