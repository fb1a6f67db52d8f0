"""Tasks that are registered after the worker's start are the worker's as all others are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery

from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker, wait_until, wait_until_heard

PLUGIN = "tests.apps.late_plugin"


@pytest.fixture
def broker(make_broker: Callable[[str], Broker]) -> Broker:
    return make_broker("redis")


def start(broker: Broker, pool: str, *args: str) -> Worker:
    env = {**broker.env, "GRACE": "60"}
    # Celery replaces an idle child only when it has something else to do.
    concurrency = 1 if pool == "prefork" else 2
    return Worker("tests.apps.late", pool=pool, concurrency=concurrency, env=env, args=args)


def register(worker: Worker, broker: Broker, app: Celery, pool: str) -> None:
    """In a pool's children by new ones; else by what runs in the worker itself."""
    worker.ready()
    wait_until_heard(app)
    if pool == "prefork":
        options = {"modules": [PLUGIN], "reload": False}
        assert app.control.broadcast(
            "pool_restart", arguments=options, reply=True, timeout=TIMEOUT, limit=1
        )
        worker.wait_line(">> .* child", 2)  # the old one is replaced
    else:
        app.send_task("import_plugin").get(timeout=TIMEOUT)
        broker.cut()
        worker.wait_line("Connected to", 2)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_lost_connection_starts_it_no_second_time_and_a_stop_interrupts_it(
    pool: str, broker: Broker, app: Celery, tmp_path: Path
) -> None:
    with start(broker, pool) as worker:
        register(worker, broker, app, pool)
        running = app.send_task("late", [str(tmp_path / "go")])
        worker.wait_line(f"started {running.id}")
        losses = worker.count("Connected to")
        broker.cut()
        worker.wait_line("Connected to", losses + 1)
        sleeping = app.send_task("sleeping", [2 * TIMEOUT])
        worker.wait_line(rf"{sleeping.id}\] received")  # it fetches, and nothing came back
        assert not broker.client.llen("celery")
        (tmp_path / "go").touch()
        # Asked for: `get()` of a client that connects again may miss what is said meanwhile.
        wait_until(lambda: running.state == "SUCCESS", "it has ended")
        worker.wait_line(f"started {sleeping.id}")
        assert worker.count(f"started {running.id}") == 1
        worker.term()
        assert worker.wait() == 0
        assert worker.took < 30, "of 60 s of grace"
        assert worker.count("Stopped: .*1 interrupted") == 1
    assert sleeping.state == "INTERRUPTED"
    assert broker.drain_queue(app) == [sleeping.id]
    assert broker.held() == 0


def test_what_is_none_of_ours_runs_once_all_the_same(
    broker: Broker, app: Celery, tmp_path: Path
) -> None:
    """Its strategy was built by hand, so its request is Celery's own."""
    with start(broker, "threads") as worker:
        worker.ready()
        app.send_task("build_by_hand").get(timeout=TIMEOUT)
        running = app.send_task("by_hand", [str(tmp_path / "go")])
        worker.wait_line(f"started {running.id}")
        with start(broker, "threads", "-I", PLUGIN) as other:
            other.ready()
            worker.term()
            worker.wait_line("Stopping")
            # What the other one gets now was sent after all that the first one gave back.
            last = app.send_task("import_plugin")
            assert last.get(timeout=TIMEOUT) is None
            wait_until(lambda: broker.held() == 1, "it is still claimed")
            (tmp_path / "go").touch()
            assert worker.wait() == 0
            assert running.get(timeout=TIMEOUT) == running.id
            other.term()
            assert other.wait() == 0
            assert not other.count(f"started {running.id}")
    assert broker.drain_queue(app) == []
    assert broker.held() == 0
