"""On Redis a worker notes which of its claims have begun: what merely waits is never counted."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery

from celery_graceful import PoisonedTask
from celery_graceful.operations.history import of_late
from celery_graceful.operations.stores import stores_of
from celery_graceful.poison.quarantine import UNTOLD
from tests.acceptance.test_poison import quarantined, task
from tests.acceptance.test_poison import start as start_worker
from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker, end_leases, wait_until, wait_until_heard


@pytest.fixture
def broker(make_broker: Callable[[str], Broker]) -> Broker:
    return make_broker("redis")


def start(broker: Broker, pool: str, concurrency: int, *args: str, **env: str) -> Worker:
    env = {
        "CONF_graceful_lease_ttl": "5",
        "CONF_graceful_heartbeat_interval": "0.5",
        "CONF_graceful_rescue_interval": "0.3",
        "CONF_worker_prefetch_multiplier": "4",
        **env,
    }
    return start_worker(broker, pool, concurrency, *args, **env)


def kill(worker: Worker, broker: Broker) -> None:
    worker.signal(signal.SIGKILL, group=True)
    worker.wait()
    end_leases(broker.client)


def noted(broker: Broker) -> int:
    """Claims that are known to have begun."""
    client = broker.client
    workers = [key.removeprefix("graceful:begun:") for key in client.keys("graceful:begun:*")]
    return sum(
        len(client.smembers(f"graceful:begun:{w}") & set(client.hkeys(f"graceful:claims:{w}")))
        for w in workers
    )


@pytest.mark.parametrize(
    ("pool", "args"),
    [
        ("solo", ()),
        ("prefork", ("--autoscale=1,1",)),
        ("threads", ()),
        ("gevent", ()),
    ],
)
def test_workers_that_die(pool: str, args: tuple[str, ...], broker: Broker, app: Celery) -> None:
    """What ran is counted, what was prefetched is not, whatever ``-c`` says of the pool."""
    at_once = 4 if pool in ("threads", "gevent") else 1
    sent = [task(app, "stubborn", 60).apply_async(task_id=f"{n}") for n in range(at_once)]
    waiting = [task(app, "part").apply_async() for _ in range(3)]
    waiting += [task(app, "limited").apply_async() for _ in range(3)]
    for deaths in range(3):
        with start(broker, pool, 4, *args) as worker:
            worker.wait_line(r"started \d$", at_once)
            if not deaths:
                wait_until(lambda: broker.held() > at_once)
            wait_until(lambda: noted(broker) == at_once)
            kill(worker, broker)
    with start(broker, pool, 4, *args) as worker:
        for one in sent:
            with pytest.raises(PoisonedTask, match="died 3 times"):
                one.get(timeout=TIMEOUT)
        for one in waiting[:3]:
            assert one.get(timeout=TIMEOUT) == 1
        assert not worker.count(r"started \d$")
    assert quarantined(app).keys() == {one.id for one in sent}
    assert of_late(stores_of(app), 3600).deaths == 3, "processes, not tasks"
    assert not any(broker.client.exists(f"graceful:deaths:{one.id}") for one in waiting)


def test_a_pool_that_was_shrunk(broker: Broker, app: Celery) -> None:
    """By remote control, to one child of four."""
    with start(broker, "prefork", 4, CONF_worker_enable_remote_control="True") as worker:
        worker.ready()
        wait_until_heard(app)
        assert app.control.pool_shrink(3, reply=True, timeout=TIMEOUT, limit=1)
        sent = {task(app, "stubborn", 60).apply_async().id for _ in range(4)}
        worker.wait_line("received", 4)
        wait_until(lambda: noted(broker) == 1)
        worker.wait_line("started")
        kill(worker, broker)
        assert worker.count("started") == 1
    with start(broker, "solo", 4, CONF_graceful_poison_limit="1") as other:
        other.wait_line("goes to quarantine")
        other.wait_line("started")
    assert len(quarantined(app).keys() & sent) == 1
    assert not broker.client.keys("graceful:deaths:*")


@pytest.mark.parametrize(("pool", "how"), [("solo", "exit"), ("prefork", "group")])
def test_a_task_that_kills_its_worker_at_once(
    pool: str, how: str, broker: Broker, app: Celery
) -> None:
    """Nothing that a thread sends gets out in time: from the second run on it is waited for."""
    poison = task(app, "dying", how).apply_async()
    innocent = [task(app, "part").apply_async() for _ in range(2)]
    runs = 0
    while runs < 5:
        with start(broker, pool, 1) as worker:
            worker.wait_line(f"started {poison.id}|quarantined {poison.id}")
            if worker.count(f"quarantined {poison.id}"):
                break
            worker.wait()
            end_leases(broker.client)
            runs += 1
    assert runs in (3, 4)
    assert quarantined(app).keys() == {poison.id}
    assert not any(broker.client.exists(f"graceful:deaths:{one.id}") for one in innocent)


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_stop_while_it_is_told(pool: str, broker: Broker, app: Celery, tmp_path: Path) -> None:
    """It is told to its end, and so to nobody again."""
    told = tmp_path / "told"
    poison = task(app, "dying", "exit").apply_async()
    env = {"CONF_graceful_poison_limit": "1", "TOLD": str(told)}
    if pool == "gevent":
        with start(broker, "solo", 1, **env) as worker:
            worker.wait_line("started")
            worker.wait()
            end_leases(broker.client)
    with start(broker, pool, 1, **env) as worker:
        worker.wait_line(f"quarantined {poison.id}")
        assert broker.client.exists(UNTOLD)
        worker.term()
        worker.wait_line("Stopped: ")
        told.touch()
        assert worker.wait() == 0
        assert not broker.client.exists(UNTOLD)
