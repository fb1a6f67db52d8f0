"""Hundreds of tasks that stop at once: what each has done is saved, however many they are."""

from __future__ import annotations

import pytest
from celery import Celery

from tests.conftest import RedisDB
from tests.support.distance import far_away
from tests.support.workers import Worker

#: Many times the connections of a client; and seconds to Redis, and from there.
TASKS, DISTANCE = 250, 0.02

GRACE = 60.0


@pytest.mark.parametrize("pool", ["gevent", "threads"])
def test_all_that_stop_at_once_are_saved(pool: str, redis_db: RedisDB) -> None:
    app = Celery("many", broker=redis_db.url)
    with app.producer_or_acquire() as producer:
        for number in range(TASKS):
            options = {"task_id": f"{number}", "producer": producer, "ignore_result": True}
            app.send_task("tests.apps.resuming.rows", [1000], **options)
    there = redis_db.client.connection_pool.connection_kwargs["port"]
    with far_away(there, DISTANCE) as way:
        env = {
            "BROKER_URL": redis_db.url.replace(f":{there}/", f":{way.port}/"),
            "GRACE": str(GRACE),
        }
        with Worker("tests.apps.resuming", pool=pool, concurrency=TASKS, env=env) as worker:
            worker.wait_line(">> .* rows", count=TASKS)
            worker.term()
            assert worker.wait() == 0
            assert worker.took < GRACE / 2
            assert not worker.count("ERROR|CRITICAL|does not work")
    pipe = redis_db.client.pipeline()
    for number in range(TASKS):
        key = f"graceful:checkpoint:tests.apps.resuming.rows:{number}"
        pipe.hmget(key, "c:loop", "interruptions")
    loops, interruptions = zip(*pipe.execute(), strict=True)
    assert all(loops)
    assert set(interruptions) == {"1"}
    assert redis_db.client.llen("celery") == TASKS
