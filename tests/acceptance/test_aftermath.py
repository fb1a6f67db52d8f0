"""Whatever is raised between a task's end and its acknowledgement, the task has ended."""

from __future__ import annotations

from collections import Counter

import pytest
from celery import Celery
from redis import Redis

from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker, wait_until, wait_until_heard

pytestmark = pytest.mark.slow

#: How often each is run; more than the worker may hold at once.
RUNS = {
    "books": 1,
    "event": 1,
    "accepted": 1,
    "fails": 1,
    "after": 1,
    "memory": 1,
    "retried": 2,
    "rejected": 1,
    "goes_back": 2,
    "early": 1,
    "revoked": 0,
}
#: Where there are processes, and Celery ends one.
OF_CHILDREN = {"dies": 2, "limited": 1, "filtered": 1}

SETUPS = [(pool, "redis") for pool in ("prefork", "threads", "gevent", "solo")]
SETUPS += [("prefork", "rabbitmq")]


@pytest.mark.parametrize(("pool", "broker"), SETUPS, indirect=["broker"])
def test_what_is_raised_at_the_end_of_a_task(pool: str, broker: Broker, app: Celery) -> None:
    runs = RUNS if pool != "prefork" else RUNS | OF_CHILDREN
    env = {**broker.env, "GRACE": "60"}
    env["CONF_worker_prefetch_multiplier"] = "1"
    with Worker("tests.apps.mishaps", pool=pool, env=env) as worker:
        worker.ready()
        wait_until_heard(app)
        app.control.revoke("revoked-1", reply=True, timeout=TIMEOUT, limit=1)
        for name in runs:
            app.send_task(name, task_id=f"{name}-1")
        for name, count in runs.items():
            worker.wait_line(f">> .* ran {name}$", count) if count else None
            worker.wait_line(rf"ERROR.* {name}\[{name}-1\] .*(Mishap|dictionary|MemoryError)")
        last = app.send_task("books", task_id="last")
        last.get(TIMEOUT)
        wait_until(lambda: not broker.held(), "all is acknowledged")
        inspect = app.control.inspect(timeout=TIMEOUT, limit=1)
        # What is accepted in between is active, and not reserved any more.
        for held in (inspect.reserved, inspect.active):
            wait_until(lambda held=held: [*held().values()] == [[]], f"nothing is {held.__name__}")
        worker.term()
        assert worker.wait() == 0
        assert worker.took < 30, "of 60 s of grace"
        assert worker.count("Stopped: 0 finished, 0 interrupted, 0 given up, 0 released") == 1
        ran = Counter(found[1] for found in worker.find(r">> .* ran (\w+)"))
        said = Counter(found[1] for found in worker.find(r"ERROR.* (\w+)\[\w+-1\] (has|runs,)"))
    assert ran == Counter(runs | {"books": 2})
    # Events of two moments raise, and a hard time limit is told twice.
    twice = {"event": 2, "limited": 2}
    assert said == {name: twice.get(name, 1) for name in runs}
    assert broker.drain_queue(app) == []
    with Redis.from_url(broker.backend_url if broker.name == "rabbitmq" else broker.url) as store:
        assert store.keys("graceful:checkpoint:*") == []
