"""RabbitMQ gives back what a worker held, and does not say what of it ran."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from celery import Celery
from celery.exceptions import TimeoutError as NotYet

from celery_graceful import PoisonedTask
from celery_graceful.operations.history import of_late
from celery_graceful.operations.stores import stores_of
from tests.acceptance.test_poison import quarantined, task
from tests.acceptance.test_poison import start as start_worker
from tests.apps import quorum_queues
from tests.conftest import RabbitVhost
from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker, end_leases, wait_until


@pytest.fixture(params=["rabbitmq", "quorum"])
def broker(request: pytest.FixtureRequest, make_broker: Callable[[str], Broker]) -> Broker:
    return make_broker(request.param)


@pytest.fixture
def app(broker: Broker, app: Celery) -> Celery:
    app.conf.graceful_store = broker.backend_url
    return app


def start(broker: Broker, pool: str = "prefork", concurrency: int = 1, **env: str) -> Worker:
    env = {"CONF_graceful_lease_ttl": "5", "CONF_graceful_heartbeat_interval": "0.5", **env}
    return start_worker(broker, pool, concurrency, **env)


def store(broker: Broker) -> redis.Redis:
    return redis.Redis.from_url(broker.backend_url, decode_responses=True)


def kill(worker: Worker, broker: Broker) -> None:
    worker.signal(signal.SIGKILL, group=True)
    worker.wait()
    end_leases(store(broker))


@pytest.mark.parametrize(
    ("pool", "broker"),
    [
        *((pool, "rabbitmq") for pool in ("prefork", "threads", "gevent")),
        ("prefork", "quorum"),  # the same code as with a classic queue, in all pools
    ],
    indirect=["broker"],
)
def test_workers_that_die(pool: str, broker: Broker, app: Celery) -> None:
    """What ran is counted, what was prefetched is not; the third death is the last."""
    data, notes, prefetched = store(broker), [None], []
    poison = task(app, "stubborn", 60).apply_async(task_id="poison")
    for deaths in range(3):
        with start(broker, pool, CONF_worker_prefetch_multiplier="4") as worker:
            worker.wait_line("started poison")
            if deaths:
                worker.wait_line(rf"stubborn\[poison\].* death {deaths} of 3 .*runs again")
            if deaths == 0:
                prefetched += [task(app, "part").apply_async() for _ in range(3)]
                worker.wait_line(rf"part\[{prefetched[0].id}\] received")
            wait_until(lambda: data.get("graceful:started:poison") not in notes)
            notes.append(data.get("graceful:started:poison"))
            # Those that came first this time, since they had no dead worker's lease to wait for,
            # have run: killed before that was said, they would rightly be counted.
            wait_until(lambda: data.keys("graceful:started:*") == ["graceful:started:poison"])
            assert data.zcard("graceful:deaths:poison") == deaths
            kill(worker, broker)
    with start(broker, pool) as worker:
        with pytest.raises(PoisonedTask, match="died 3 times"):
            poison.get(timeout=TIMEOUT)
        for one in prefetched:
            assert one.get(timeout=TIMEOUT) == 1
            assert not data.exists(f"graceful:deaths:{one.id}")
        assert not worker.count("started poison")
        worker.term()
        assert worker.wait() == 0
    assert of_late(stores_of(app), 3600).deaths == 3
    assert quarantined(app).keys() == {"poison"}
    assert not data.keys("graceful:started:*")
    assert broker.drain_queue(app) == []


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_task_that_kills_its_worker_at_once(app: Celery, broker: Broker) -> None:
    """Nothing that a thread sends gets out in time: from the second run on it is waited for."""
    poison = task(app, "dying", "exit").apply_async()
    runs = 0
    while runs < 5:
        with start(broker, "threads") as worker:
            worker.wait_line(f"started {poison.id}|quarantined {poison.id}")
            if worker.count(f"quarantined {poison.id}"):
                break
            worker.wait()
            end_leases(store(broker))
            runs += 1
    assert runs in (3, 4)


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_lease_that_lives_puts_the_verdict_off(app: Celery, broker: Broker) -> None:
    """A worker that lost no more than its connection costs its task nothing."""
    data, now = store(broker), time.time()
    for name, alive in (("dead", 0.7), ("alive", 600)):
        data.set(f"graceful:lease:{name}", "{}", px=int(alive * 1000))
        data.set(f"graceful:started:of-{name}", f"{name}|1")
        data.zadd(f"graceful:deaths:of-{name}", {"|1": now, "|2": now})
        task(app, "part").apply_async(task_id=f"of-{name}")
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        for _ in range(2):
            wait_until(lambda: channel.basic_get("celery"), "it has arrived")
    # Now they were delivered before.
    with start(broker, concurrency=2) as worker:
        with pytest.raises(PoisonedTask):
            app.AsyncResult("of-dead").get(timeout=TIMEOUT)
        worker.wait_line(r"of-alive\] received")
        data.delete("graceful:started:of-alive")  # it goes on without its connection, and ends
        assert app.AsyncResult("of-alive").get(timeout=TIMEOUT) == 1
        worker.term()
        assert worker.wait() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_lost_connection(
    pool: str, broker: Broker, app: Celery, rabbit_vhost: RabbitVhost, tmp_path: Path
) -> None:
    """What runs goes on, and is not started again beside itself; it is no death either."""
    data = store(broker)
    with start(broker, pool, concurrency=2) as worker:
        worker.ready()
        gate = tmp_path / "told again"
        long = task(app, "gated", str(gate)).apply_async()
        worker.wait_line(f"started {long.id}")

        def lost() -> int:
            rabbit_vhost.cut()  # those that it knows of by now
            return worker.count("Connection to broker lost")

        wait_until(lost, "the broker knows its connection", 0.5)
        worker.wait_line(f"{long.id}.* still runs")
        with pytest.raises(NotYet):
            long.get(timeout=0.1)
        gate.touch()
        assert long.get(timeout=TIMEOUT) == long.id
        assert task(app, "part").apply_async(task_id="part").get(timeout=TIMEOUT) == 1
        worker.term()
        assert worker.wait() == 0
        assert worker.count(f"started {long.id}") == 1
        assert data.keys("graceful:*") == ["graceful:epoch"]
        assert broker.drain_queue(app) == []


@pytest.mark.parametrize("broker", ["quorum"], indirect=True)
def test_what_is_given_back_often(
    app: Celery, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deploys do not use up the delivery limit of a quorum queue; a classic one has none."""
    stops = 5
    monkeypatch.setenv("QUORUM", "4")
    app.conf.task_queues = quorum_queues()
    ids = [task(app, "waiting", 60).apply_async().id for _ in range(2)]
    for _ in range(stops):
        with start(broker, "threads", concurrency=2, COPY_AFTER="2") as worker:
            for task_id in ids:
                worker.wait_line(f"started {task_id}")
            worker.term()
            assert worker.wait() == 0
    assert sorted(broker.drain_queue(app, at_least=len(ids))) == sorted(ids)
    assert not quarantined(app)
