"""Greenlets: what Celery makes anew for each of them, and a loop that waits while they run."""

from __future__ import annotations

import pytest

from tests.conftest import RedisDB
from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker, wait_until_heard

#: Tasks, and how many of them run at a time.
TASKS, PLACES = 60, 3


@pytest.fixture
def broker(redis_db: RedisDB) -> Broker:
    return Broker("redis", redis_db.url, redis_db.backend_url, redis_db.client)


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_results_are_stored_over_a_connection_for_each_place(pool: str, broker: Broker) -> None:
    worker = Worker("tests.apps.chords", pool=pool, concurrency=PLACES, env=broker.env)
    with broker.app() as app, worker:
        worker.ready()

        def made() -> int:
            return int(broker.client.info("stats")["total_connections_received"])

        def run(tasks: int) -> None:
            sent = [app.send_task("part", [number]) for number in range(tasks)]
            assert [one.get(timeout=TIMEOUT) for one in sent] == list(range(tasks))

        run(PLACES * 2)
        before = made()
        run(TASKS)
        assert made() - before < TASKS / 2


@pytest.mark.parametrize("pool", ["threads", "gevent", "eventlet", "solo"])
def test_no_collection_of_garbage_looks_at_what_was_there_before_tasks(
    pool: str, broker: Broker
) -> None:
    with broker.app() as app, Worker("tests.apps.chords", pool=pool, env=broker.env) as worker:
        worker.ready()
        assert app.send_task("frozen").get(timeout=TIMEOUT) > 10_000


@pytest.mark.parametrize("pool", ["threads", "gevent", "eventlet"])
def test_nothing_is_taken_of_a_queue_whose_consumer_was_cancelled(
    pool: str, broker: Broker
) -> None:
    worker = Worker("tests.apps.chords", pool=pool, env=broker.env, args=["-Q", "celery,other"])
    with broker.app() as app, worker:
        worker.ready()
        wait_until_heard(app)
        assert app.control.cancel_consumer("celery", reply=True, timeout=TIMEOUT, limit=1)
        for number in range(20):
            app.send_task("part", [number])
        assert app.send_task("part", ["last"], queue="other").get(timeout=TIMEOUT) == "last"
        assert broker.client.llen("celery") == 20
