"""What an interruption becomes on its way out of a task: a failure, a retry? It stays one."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery import Celery

from tests.conftest import RedisDB
from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker, wait_until

#: Ended by the soft limit, whatever it has become on the way.
LIMITED = [
    "wrapped",
    "wrapped_autoretry",
    "wrapped_retry",
    "hidden",
    "grouped",
    "in_atomic",
    "in_statement",
    "swallowing",
]

#: Ended by the signal to the group, which has ended their child processes.
CHILDREN = [
    "child",
    "child_autoretry",
    "child_of_shell",
    "child_of_library",
    "child_of_its_own",
]

#: Ended by something else.
OTHERS = {"handling": "SUCCESS", "failing": "FAILURE", "child_that_fails": "FAILURE"}


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_all_ways_out_of_an_interrupted_task(pool: str, redis_db: RedisDB, tmp_path: Path) -> None:
    broker = Broker("redis", redis_db.url, redis_db.backend_url, redis_db.client)
    env = {**broker.env, "GRACE": "90"}
    env["DB"] = str(tmp_path / "db.sqlite3")
    children = CHILDREN if pool == "gevent" else [*CHILDREN, "child_of_asyncio"]
    names = [*LIMITED, *children, *OTHERS]
    with (
        broker.app() as app,
        Worker("tests.apps.ended", pool=pool, concurrency=len(names), env=env) as worker,
    ):
        worker.ready()
        forked = app.send_task("tests.apps.ended.forking")
        assert forked.get(timeout=TIMEOUT) == [3 if pool == "prefork" else -15, False]
        if pool == "gevent":
            gate = tmp_path / "gate"
            forked = app.send_task("tests.apps.ended.forking_meanwhile", [str(gate)])
            worker.wait_line(">> .* forked ")
            for _ in range(20):  # each is fetched by the worker, and none by what was forked
                assert app.send_task("tests.apps.ended.nothing").get(timeout=TIMEOUT) is None
            gate.touch()
            assert forked.get(timeout=TIMEOUT) == 3
        ended = app.send_task("tests.apps.ended.child_that_was_ended")
        wait_until(lambda: ended.state == "FAILURE")
        for name in names:
            app.send_task(f"tests.apps.ended.{name}", task_id=name)
        for name in names:
            worker.wait_line(f"started {name} 0")
        worker.wait_line(">> .* pid ")
        worker.term(group=True)
        assert worker.wait() == 0
        check(app, worker, broker, [*LIMITED, *children])


def check(app: Celery, worker: Worker, broker: Broker, interrupted: list[str]) -> None:
    states = {name: app.AsyncResult(name).state for name in [*interrupted, *OTHERS]}
    assert states == {**dict.fromkeys(interrupted, "INTERRUPTED"), **OTHERS}
    assert sorted(broker.drain_queue(app)) == sorted(interrupted)
    assert worker.count("given up") == worker.count(" 0 given up"), "the limit came a second time"
    assert worker.count("NOT REACHED") == 0
    assert worker.count("usable in_atomic 0") == 1
    assert worker.count("usable in_statement 0") == 1
    assert worker.count("swallowed ShutdownTimeLimit") == 1
    assert worker.count(">> .* ended -15") == 1
