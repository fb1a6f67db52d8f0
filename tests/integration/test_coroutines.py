"""Interrupts in coroutines, on workers: nothing swallows them, and nothing goes on behind them."""

from __future__ import annotations

import pytest
from celery.exceptions import TaskRevokedError

from tests.conftest import RedisDB
from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker, wait_until, wait_until_heard

APP = "tests.apps.coroutines"
INTERRUPTED = ["sleeping", "gathering", "shielded", "to_sync", "process_wide", "own_loop"]
INTERRUPTED += ["converting", "failing_cleanup"]
ASTRAY = ["generating", "generating_elsewhere", "left_elsewhere"]
LIMITED = ["limited", "computing", "untied", "converting_limit"]
HANDLED = ["handling", "handling_limit"]


def start(pool: str, redis_db: RedisDB, concurrency: int) -> Worker:
    env = {"BROKER_URL": redis_db.url, "RESULT_URL": redis_db.backend_url, "GRACE": "30"}
    env |= {"CONF_graceful_soft_deadline": "11.0", "CONF_graceful_hard_deadline": "22.0"}
    return Worker(APP, pool=pool, concurrency=concurrency, env=env)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_coroutines_end_as_interruptions(pool: str, redis_db: RedisDB) -> None:
    broker = Broker("redis", redis_db.url, redis_db.backend_url, redis_db.client)
    names = [*INTERRUPTED, *ASTRAY, *LIMITED, *HANDLED]
    with broker.app() as app, start(pool, redis_db, len(names)) as worker:
        worker.ready()
        done = app.send_task(f"{APP}.ending")
        assert done.get(timeout=TIMEOUT) == ["done", "done"]
        for name in names:
            app.send_task(f"{APP}.{name}", task_id=name)
        for name in names:
            worker.wait_line(f">> .* started {name}$")
        worker.term()
        for name in {*INTERRUPTED, *ASTRAY} - {"shielded"}:
            wait_until(lambda name=name: app.AsyncResult(name).state == "INTERRUPTED")
        assert not worker.count("Soft deadline"), "at once"
        assert worker.wait() == 0
        states = {name: app.AsyncResult(name).state for name in names}
        expected = dict.fromkeys(names, "INTERRUPTED") | dict.fromkeys(HANDLED, "SUCCESS")
        assert states == expected
        assert sorted(broker.drain_queue(app)) == sorted([*INTERRUPTED, *ASTRAY, *LIMITED])
        assert worker.count("NOT REACHED") == 0
        assert worker.count(" 0 given up") == 1
        assert worker.count(">> .* left gathering") == 2
        assert worker.count(">> .* left to_sync") == 1
        assert worker.count(">> .* written shielded") == 2
        assert worker.count(">> .* open process_wide 0") == 1
        assert worker.count(">> .* open own_loop 0") == 1
        assert worker.count(">> .* limit limited") == 1
        assert worker.count(">> .* kept ShutdownTimeLimit") == 1
        assert not worker.count("never awaited|never retrieved|unhandled exception")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_soft_time_limit_comes_where_a_shield_ends(pool: str, redis_db: RedisDB) -> None:
    broker = Broker("redis", redis_db.url, redis_db.backend_url, redis_db.client)
    with broker.app() as app, start(pool, redis_db, 1) as worker:
        worker.ready()
        done = app.send_task(f"{APP}.soft_limit_in_shield")
        assert done.get(timeout=TIMEOUT) == ["shielded", "limit", "once"]
        worker.term()
        assert worker.wait() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_coroutines_of_revoked_tasks(pool: str, redis_db: RedisDB) -> None:
    names = ["gathering", "to_sync", "process_wide", "limited", "left_elsewhere", "generating"]
    failing = "converting"  # as everywhere, what a revoked task raises is a failure
    broker = Broker("redis", redis_db.url, redis_db.backend_url, redis_db.client)
    with broker.app() as app, start(pool, redis_db, len(names) + 1) as worker:
        worker.ready()
        wait_until_heard(app)
        for name in (*names, failing):
            app.send_task(f"{APP}.{name}", task_id=name)
        for name in (*names, failing):
            worker.wait_line(f">> .* started {name}$")
        app.control.revoke([*names, failing], terminate=True)
        wait_until(lambda: app.AsyncResult(failing).state == "FAILURE")
        for name in names:
            worker.wait_line(f">> .* left {name}")  # it does not go on
            with pytest.raises(TaskRevokedError):
                app.AsyncResult(name).get(timeout=TIMEOUT)
        assert app.send_task(f"{APP}.ending").get(timeout=TIMEOUT) == ["done", "done"]
        worker.term()
        assert worker.wait() == 0
        assert worker.count("NOT REACHED") == 0
