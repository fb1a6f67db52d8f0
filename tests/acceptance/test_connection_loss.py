"""What Celery cancels when its connection is lost, since it could not acknowledge it any more."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from celery import Celery

from tests.conftest import RabbitVhost
from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker, wait_until

pytestmark = pytest.mark.slow


def start(broker: Broker, pool: str) -> Worker:
    env = {**broker.env, "GRACE": "60"}
    env["CONF_worker_cancel_long_running_tasks_on_connection_loss"] = "True"
    return Worker("tests.apps.claims", pool=pool, env=env)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_a_claim_outlives_it(pool: str, broker: Broker, app: Celery, tmp_path: Path) -> None:
    """Its task goes on, and the log does not say otherwise."""
    with start(broker, pool) as worker:
        worker.ready()
        result = app.send_task("hold", [str(tmp_path / "go")])
        worker.wait_line(">> .* started")
        active = app.control.inspect().active
        wait_until(lambda: result.id in str(active()), "the worker knows that it has begun")
        for kind in ("pubsub", "normal"):
            broker.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        worker.wait_line(f"Task .*{result.id}.* goes on: its message is claimed")
        (tmp_path / "go").touch()
        # Asked for: `get()` of a client that connects again may miss what is said meanwhile.
        wait_until(lambda: app.AsyncResult(result.id).state == "SUCCESS", "it has ended")
        wait_until(lambda: not broker.held(), "it is acknowledged")
        worker.term()
        assert worker.wait() == 0
        assert worker.count(">> .* started") == 1
        assert worker.count("Terminating it") == 0
    assert broker.drain_queue(app) == []


def test_without_claims_it_is_run_again(rabbit_vhost: RabbitVhost, redis_db, tmp_path) -> None:
    broker = Broker("rabbitmq", rabbit_vhost.url, redis_db.backend_url, redis_db.client)
    with ExitStack() as stack:
        app = stack.enter_context(broker.app())
        worker = stack.enter_context(start(broker, "prefork")).ready()
        result = app.send_task("hold", [str(tmp_path / "go")])
        worker.wait_line(">> .* started")

        def lost() -> int:
            found = worker.count("Terminating it instead")
            if not found:  # else this might end the next run
                rabbit_vhost.cut()  # those that it knows of by now
            return found

        wait_until(lost, "the broker knows the worker's connection", 0.5)
        worker.wait_line(">> .* started", 2)
        (tmp_path / "go").touch()
        assert result.get(TIMEOUT) == result.id
        worker.term()
        assert worker.wait() == 0
        assert worker.count(">> .* ended") == 1
    assert broker.drain_queue(app) == []
