"""`revoke(terminate=True)` of tasks that run, on every pool whose worker hears of it meanwhile."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError

from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker, wait_until, wait_until_heard

pytestmark = pytest.mark.slow

#: Seconds. Much room after the hard deadline: the machine may be slow.
GRACE, HARD = 60.0, 9.0
POOLS = ["prefork", "spawn", "threads", "gevent", "eventlet"]
CHILDREN = ("prefork", "spawn")

#: All pools on Redis; on RabbitMQ one whose tasks run in children, and one whose do not.
EACH = pytest.mark.parametrize(
    ("pool", "broker"),
    [*((pool, "redis") for pool in POOLS), ("prefork", "rabbitmq"), ("threads", "rabbitmq")],
    indirect=["broker"],
)

#: Those that end as revoked, at once.
AT_ONCE = ["cooperative", "iterating", "unaware", "calling"]


def start(pool: str, broker: Broker, concurrency: int = 2, hard: float = HARD) -> Worker:
    env = {**broker.env, "GRACE": str(GRACE), "LAST_RESORT": "20"}
    env["CONF_graceful_hard_deadline"] = str(hard)
    env["CONF_graceful_store"] = repr(broker.backend_url)
    return Worker("tests.apps.revoked", pool=pool, concurrency=concurrency, env=env)


def send(app: Celery, name: str, *args: object, task_id: str = "") -> str:
    return str(app.send_task(f"tests.apps.revoked.{name}", args, task_id=task_id or name).id)


def is_revoked(app: Celery, name: str) -> None:
    with pytest.raises(TaskRevokedError):
        app.AsyncResult(name).get(timeout=TIMEOUT)


@EACH
def test_running_tasks_are_revoked(pool: str, broker: Broker, app: Celery, tmp_path: Path) -> None:
    written, ended = str(tmp_path / "written"), str(tmp_path / "ended")
    gates = {"shielded": written, "swallowing": ended, "bystander": ended}
    names = [*AT_ONCE, "handling", "failing", *gates]
    with start(pool, broker, len(names)) as worker:
        worker.ready()
        wait_until_heard(app)
        for name in names:
            send(app, name, *([gates[name]] if name in gates else []))
        pids = {name: worker.wait_line(rf">> .* started {name} ").split()[-1] for name in names}
        began = time.monotonic()
        app.control.revoke([name for name in names if name != "bystander"], terminate=True)
        worker.wait_line("sees shielded revoked")
        assert worker.count(">> .* revoked shielded") == 0, "it runs"
        Path(written).touch()
        worker.wait_line(">> .* revoked shielded")
        # Celery 5.6 stores the state of all of them at once, as revoked.
        for name in [*AT_ONCE, "shielded"]:
            worker.wait_line(f">> .* revoked {name} True 15 False")
            is_revoked(app, name)
        wait_until(lambda: app.AsyncResult("handling").state == "SUCCESS")
        wait_until(lambda: app.AsyncResult("failing").state == "FAILURE")
        worker.wait_line("swallowed swallowing")
        worker.wait_line(r"swallowing\[swallowing\] was revoked and still runs")
        assert time.monotonic() - began >= HARD
        if pool in CHILDREN:
            worker.wait_line(">> .* revoked swallowing")
        Path(ended).touch()
        assert app.AsyncResult("bystander").get(timeout=TIMEOUT) == "finished"
        if pool not in CHILDREN:
            wait_until(lambda: app.AsyncResult("swallowing").state == "SUCCESS")
        # The processes live on; there is nothing left that could stop the next task.
        again = [send(app, "bystander", ended, task_id=f"again-{i}") for i in range(9)]
        assert [app.AsyncResult(i).get(timeout=TIMEOUT) for i in again] == ["finished"] * 9
        worker.stopped_at = 0
        worker.term()
        assert worker.wait() == 0
        assert worker.took < 40, "of 60 s of grace"
    assert worker.count("NOT REACHED|watch over the drain failed") == 0
    for name in [*AT_ONCE, "shielded"]:
        assert worker.count(f">> .* revoked {name} True 15 False") == 1, name
        assert worker.count(f">> .* started {name} ") == 1, name
        hook = worker.find(rf">> .* hook {name} revoked (\S+)")
        assert len(hook) == 1, name
        left = float(hook[0][1])
        assert 0 < left <= HARD if pool in CHILDREN else left == float("inf")
    assert worker.count(">> .* unwound unaware") == 1
    assert worker.count(">> .* written shielded") == 1
    assert worker.count(">> .* cancelled calling revoked") == 1
    if pool in CHILDREN:
        died = worker.count("exited with|signal 9 \\(SIGKILL\\)")
        assert len(set(pids.values())) == 9
        assert died <= 1, "the one that swallowed"
    assert broker.drain_queue(app) == []
    assert broker.held() == 0
    assert broker.client.keys("graceful:checkpoint:*") == []


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
@pytest.mark.parametrize("pool", POOLS)
def test_what_is_tried_again_at_once_is_found(
    pool: str, broker: Broker, app: Celery, tmp_path: Path
) -> None:
    """Celery forgets, with the run that has ended, the other one of its id."""
    with start(pool, broker) as worker:
        worker.ready()
        wait_until_heard(app)
        send(app, "overtaken", str(tmp_path / "gate"))
        worker.wait_line(">> .* started overtaken", 2)
        wait_until(lambda: broker.held() == 1, "the first run has ended")
        (found,) = app.control.inspect(timeout=TIMEOUT, limit=1).query_task("overtaken").values()
        assert [what for what, _ in found.values()] == ["active"]
        app.control.revoke("overtaken", terminate=True)
        worker.wait_line(">> .* revoked overtaken True 15 False")
        is_revoked(app, "overtaken")
        worker.term()
        assert worker.wait() == 0


@EACH
def test_revoked_while_the_worker_stops(
    pool: str, broker: Broker, app: Celery, tmp_path: Path
) -> None:
    """It does not go back to the queue: others would have to throw it away."""
    gate = tmp_path / "written"
    with start(pool, broker, hard=GRACE - 5) as worker:
        worker.ready()
        wait_until_heard(app)
        send(app, "shielded", str(gate))
        worker.wait_line("started shielded")
        worker.term()
        worker.wait_line("sees shielded shutdown")
        app.control.revoke("shielded", terminate=True)
        worker.wait_line("sees shielded revoked")
        gate.touch()
        assert worker.wait() == 0
        is_revoked(app, "shielded")
        assert worker.took < 40, "of 60 s of grace"
    assert worker.count(">> .* hook shielded revoked") == 1
    assert worker.count("NOT REACHED") == 0
    assert broker.drain_queue(app) == []
    assert broker.held() == 0


@EACH
def test_revoked_and_still_there_at_the_end(
    pool: str, broker: Broker, app: Celery, tmp_path: Path
) -> None:
    """Shortly before the worker's hard deadline its process is ended, where it can be."""
    names = ["shielded", "swallowing"]
    with start(pool, broker) as worker:
        worker.ready()
        wait_until_heard(app)
        for name in names:
            send(app, name, str(tmp_path / "never"))
            worker.wait_line(f"started {name}")
        worker.term()
        worker.wait_line("sees shielded shutdown")
        app.control.revoke(names, terminate=True)
        assert worker.wait() == 0
        assert worker.took < 40, "of 60 s of grace"
    if pool in CHILDREN:
        for name in names:
            is_revoked(app, name)
            assert worker.count(f">> .* revoked {name} True") == 1
    assert worker.count("NOT REACHED|written") == 0
    back = [] if pool in CHILDREN else names
    assert sorted(broker.drain_queue(app, at_least=len(back))) == back
    assert broker.held() == 0


@pytest.mark.parametrize(
    ("pool", "broker"),
    [("prefork", "redis"), ("prefork", "rabbitmq"), ("spawn", "redis")],
    indirect=["broker"],
)
def test_what_is_as_ever(pool: str, broker: Broker, app: Celery) -> None:
    """A plain task, and any other signal: the process ends."""
    with start(pool, broker) as worker:
        worker.ready()
        wait_until_heard(app)
        for name, how in (("plain", "SIGTERM"), ("unaware", "SIGKILL")):
            send(app, name)
            worker.wait_line(f"started {name} ")
            app.control.revoke(name, terminate=True, signal=how)
            is_revoked(app, name)
            worker.wait_line(f">> .* revoked {name} True")
        worker.term()
        assert worker.wait() == 0
    assert worker.count("hook|unwound") == 0
    assert broker.drain_queue(app) == []
