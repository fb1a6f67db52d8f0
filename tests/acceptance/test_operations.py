"""What operators see and do, with real workers: each command on one fleet."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from celery import Celery
from click.testing import CliRunner

from celery_graceful import Graceful
from celery_graceful.cli.group import graceful
from celery_graceful.operations import Operations
from tests.conftest import RedisDB
from tests.servers import RedisServer
from tests.support.broker import graceful_command
from tests.support.schema import conforms, schemas
from tests.support.workers import Worker, wait_until

APP = "tests.apps.resuming"
SCHEMAS = schemas("operations.md")


def command(app: Celery, *args: str, status: int = 0) -> str:
    """What a command prints, run in this process."""
    ended = CliRunner().invoke(graceful, args, obj=SimpleNamespace(app=app), catch_exceptions=False)
    assert ended.exit_code == status, ended.output
    return str(ended.output)


def document(app: Celery, name: str, *args: str, status: int = 0) -> Any:
    """What it prints with ``--json``, which is as the docs say."""
    found = json.loads(command(app, *args, "--json", status=status))
    for each in found if isinstance(found, list) else [found]:
        conforms(each, SCHEMAS[name], SCHEMAS, name)
    return found


def make_app(broker: str, backend: str) -> Celery:
    app = Celery("resuming", broker=broker, backend=backend)
    app.conf.update(
        task_default_queue="celery", graceful_heartbeat_interval=0.5, graceful_lease_ttl=4.0
    )
    Graceful(app)
    return app


def start(app: Celery, name: str, **env: str) -> Worker:
    env = {
        "BROKER_URL": app.conf.broker_url,
        "RESULT_URL": app.conf.result_backend or "",
        "CONF_graceful_heartbeat_interval": "0.5",
        "CONF_graceful_lease_ttl": "4.0",
        "CONF_worker_prefetch_multiplier": "3",
        "GRACE": "3000",
        **env,
    }
    return Worker(APP, concurrency=1, env=env, hostname=name, alone=True)


def send(app: Celery, name: str, task_id: str, *args: Any, **options: Any) -> None:
    app.signature(f"{APP}.{name}", args).apply_async(task_id=task_id, **options)


def test_a_fleet(start_server: Callable[..., Any]) -> None:
    server: RedisServer = start_server(RedisServer)
    app = make_app(server.url(0), server.url(1))
    operations = Operations(app)
    assert "no worker is running" in command(app, "status", status=1)

    with start(app, "one@test") as one:
        one.ready()
        send(app, "count", "counts", 10**6)
        send(app, "short", "waits", 1)
        send(app, "short", "later", 2, countdown=3000)
        _running(app, operations)
        _frozen(app, operations, one)
    _dead(app, operations)
    _redis_away(app, server)


def _running(app: Celery, operations: Operations) -> None:
    wait_until(lambda: [c.begun for c in operations.claims()].count(True), "one runs")
    wait_until(lambda: len(list(operations.claims())) == 3, "the others are claimed")

    def saved() -> bool:
        tasks = [task for worker in operations.workers() for task in worker.running]
        return bool(tasks and tasks[0].checkpoint and tasks[0].checkpoint.where)

    wait_until(saved, "the heartbeat names it, and it has saved where it stands")
    (worker,) = document(app, "Status", "status")["workers"]
    assert (worker["name"], worker["phase"], worker["claims"]) == ("one@test", "running", 3)
    assert (worker["concurrency"], worker["queues"]) == (1, ["celery"])
    (task,) = worker["running"]
    assert (task["id"], task["task"]) == ("counts", f"{APP}.count")
    assert task["checkpoint"]["loops"][0]["cursor"] > 0
    said = command(app, "status")
    assert f"  {APP}.count  counts  " in said
    assert " of loop\n" in said

    found = {claim["id"]: claim for claim in document(app, "Claim", "claims", "one@test")}
    assert found["counts"]["begun"]
    assert not found["waits"]["begun"]
    assert found["later"]["eta"]
    assert found["waits"]["queue"] == "celery"
    assert "no message is claimed" in command(app, "claims", "nobody@test")
    assert command(app, "claims").startswith(f"{found['counts']['worker']}  3 claims\n")

    assert document(app, "Checkpoint", "checkpoints", "show", "counts")["task"] == f"{APP}.count"
    assert "loop loop: has done" in command(app, "checkpoints", "show", "counts")
    (listed,) = document(app, "Checkpoint", "checkpoints", "list")
    assert listed["id"] == "counts"
    assert "nothing is saved of x" in command(app, "checkpoints", "show", "x", status=1)


def _frozen(app: Celery, operations: Operations, one: Worker) -> None:
    one.signal(signal.SIGSTOP, group=True)
    wait_until(lambda: operations.status().findings, "it is not heard")
    found = document(app, "Status", "status", status=1)
    assert f"look at process {one.pid}" in found["findings"][0]["mend"]
    assert found["workers"][0]["running"][0]["id"] == "counts"
    wait_until(lambda: operations.dead_workers(), "its lease has run out")
    said = command(app, "status", status=1)
    assert "one@test is dead and holds 3 messages\n  -> celery -A resuming graceful rescue" in said


def _dead(app: Celery, operations: Operations) -> None:
    claims = document(app, "Claim", "claims")
    assert [claim["worker_lives"] for claim in claims] == [False] * 3
    assert "dead: they wait" in command(app, "claims")
    assert "3 went back" in command(app, "rescue")
    assert not operations.dead_workers()
    assert "nothing was done" in command(app, "checkpoints", "clear", "counts", status=2)
    assert command(app, "checkpoints", "clear", "counts", "--yes") == "counts cleared\n"
    assert "nothing is saved" in command(app, "checkpoints", "list")


def _redis_away(app: Celery, server: RedisServer) -> None:
    """The first one is the real command line, which takes a second to start by itself."""
    server.pause()
    env = {"BROKER_URL": app.conf.broker_url, "RESULT_URL": app.conf.result_backend}
    assert "Error: the broker" in graceful_command(APP, "status", env=env, status=3)
    for args in (["claims"], ["checkpoints", "list"], ["status"]):
        began = time.monotonic()
        assert "Error: the broker" in command(app, *args, status=3)
        assert time.monotonic() - began < 5
    server.resume()


def test_without_a_store() -> None:
    app = make_app("amqp://127.0.0.1:1", "rpc://")
    assert "graceful_store is not set" in command(app, "status", status=3)
    assert "graceful_store is not set" in command(app, "checkpoints", "list", status=3)


def test_rabbitmq_with_a_store(rabbit_vhost: Any, redis_db: RedisDB) -> None:
    app = make_app(rabbit_vhost.url, "rpc://")
    app.conf.graceful_store = redis_db.url
    operations = Operations(app)
    store = {"CONF_graceful_store": repr(redis_db.url), "RESULT_URL": "rpc://"}
    with start(app, "one@test", **store) as worker:
        worker.ready()
        send(app, "count", "counts", 10**6)
        wait_until(lambda: [w for w in operations.workers() if w.running], "it runs")
        (found,) = document(app, "Status", "status")["workers"]
        assert (found["claims"], found["running"][0]["id"]) == (None, "counts")
        assert "no message is claimed" in command(app, "claims")
