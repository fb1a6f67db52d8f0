"""Two apps, with queues and result backends of their own, share one Redis as their broker."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from celery import Celery

from celery_graceful import PoisonedTask
from tests.acceptance.test_poison import quarantined, task
from tests.conftest import RedisDB
from tests.servers import RedisServer
from tests.support.broker import Broker, graceful_command
from tests.support.workers import TIMEOUT, Worker, end_leases, wait_until

#: One knows the tasks of `tests.apps.poison`, and the other does not.
OURS, THEIRS = "tests.apps.poison", "tests.apps.claims"

LEASE = {"CONF_graceful_lease_ttl": "10", "CONF_graceful_rescue_interval": "0.5"}


@pytest.fixture
def theirs(redis_server: RedisServer, redis_db: RedisDB) -> Iterator[Broker]:
    db = redis_server.fresh_db()
    with redis_server.client(db) as results:
        yield Broker("redis", redis_db.url, redis_server.url(db), results)


@pytest.fixture
def ours(redis_db: RedisDB) -> Broker:
    return Broker("redis", redis_db.url, redis_db.backend_url, redis_db.client)


@pytest.fixture
def app(ours: Broker) -> Iterator[Celery]:
    with ours.app() as app:
        app.conf.task_default_queue = "ours"
        yield app


def env_of(broker: Broker, queue: str) -> dict[str, str]:
    return {**broker.env, "QUEUE": queue}


def start(module: str, broker: Broker, queue: str, pool: str = "solo", **env: str) -> Worker:
    env = {**env_of(broker, queue), "GRACE": "60", **LEASE, **env}
    return Worker(module, pool=pool, concurrency=1, env=env, hostname=f"{queue}@test")


def die(worker: Worker, broker: Broker) -> None:
    """And its lease runs out."""
    worker.wait_line("started")
    worker.wait()
    end_leases(broker.client, worker)


def test_each_tells_of_its_own(ours: Broker, theirs: Broker, app: Celery) -> None:
    poison = task(app, "dying", "exit").apply_async(link_error=task(app, "errback"))
    with start(THEIRS, theirs, "theirs", CONF_graceful_poison_limit="1") as their_worker:
        their_worker.ready()
        for deaths in range(1, 4):
            with start(OURS, ours, "ours") as worker:
                die(worker, ours)
            their_worker.wait_line(rf"dying\[.*death {deaths} of 3")
        their_worker.wait_line(r"dying\[.*of an app with other results \(poison\)")
        env = env_of(theirs, "theirs")
        listed = graceful_command(THEIRS, "quarantine", "list", env=env, status=1)
        assert "(of another app: poison)" in listed
        for what in ("retry", "delete"):
            said = graceful_command(THEIRS, "quarantine", what, "--all", env=env)
            assert said == "1 of other apps are left alone\n"
        assert quarantined(app).keys() == {poison.id}
        assert poison.state == "PENDING"
        # Somebody finds the next one for them who runs already.
        with start(OURS, ours, "ours") as worker:
            with pytest.raises(PoisonedTask, match="died 3 times"):
                poison.get(timeout=TIMEOUT)
            worker.wait_line("quarantined .* 3 ")
            worker.wait_line("errback")
            ours.client.hset("graceful:quarantine", "x", _copy(app, poison.id, "x"))
            ours.client.zadd("graceful:untold", {"x": 0})
            worker.wait_line("quarantined x")
            worker.term()
            assert worker.wait() == 0
        their_worker.term()
        assert their_worker.wait() == 0
        assert their_worker.count(rf"{poison.id}.*of an app with other results") == 1
    assert theirs.client.keys() == []
    assert not ours.client.exists("graceful:untold")


def _copy(app: Celery, task_id: str, new: str) -> str:
    return quarantined(app)[task_id].to_json().replace(task_id, new)


def test_what_waits_for_a_limit_that_others_do_not_know(
    ours: Broker, theirs: Broker, app: Celery
) -> None:
    waiting = 6
    for _ in range(waiting):
        task(app, "limited").apply_async()
    with start(THEIRS, theirs, "theirs") as their_worker:
        their_worker.ready()
        for _ in range(3):
            with start(OURS, ours, "ours", CONF_worker_prefetch_multiplier="8") as worker:
                worker.wait_line(r"limited\[.* succeeded")
                waiting -= 1
                worker.wait_line(r"limited\[.* received", waiting + 1)
                wait_until(lambda: ours.held() == waiting)  # noqa: B023
                worker.signal(signal.SIGKILL, group=True)
                worker.wait()
                end_leases(ours.client, worker)
            wait_until(lambda: ours.client.llen("ours") == waiting)  # noqa: B023
    assert not ours.client.keys("graceful:deaths:*")
    assert not quarantined(app)
