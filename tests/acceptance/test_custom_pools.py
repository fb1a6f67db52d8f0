"""Pools that are not Celery's own: what one is derived from decides, not what it is called."""

from __future__ import annotations

import pytest
from celery import Celery

from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker

#: Seconds. Much room after each deadline: the machine may be slow.
GRACE, SOFT, HARD = 28.0, 0.5, 12.0

pytestmark = pytest.mark.parametrize("broker", ["redis"], indirect=True)


def start(broker: Broker, pool: str, **env: str) -> Worker:
    env.update(
        **broker.env,
        GRACE=str(GRACE),
        CONF_graceful_soft_deadline=str(SOFT),
        CONF_graceful_hard_deadline=str(HARD),
        CELERY_CUSTOM_WORKER_POOL=f"tests.apps.pools:{pool}",
        short_sleeps="1",
    )
    return Worker("tests.apps.lifecycle", pool="custom", env=env).ready()


def send(app: Celery, kind: str) -> str:
    return str(app.send_task(f"tests.apps.lifecycle.{kind}").id)


@pytest.mark.parametrize("pool", ["Prefork", "Spawn", "Threads", "Solo", "Elsewhere"])
def test_derived_from_one_of_celerys(pool: str, broker: Broker, app: Celery) -> None:
    """It has its interrupts, the soft deadline among them."""
    env = {}
    if pool == "Spawn":
        pool, env = "Prefork", {"POOL_START_METHOD": "spawn"}
    alone = pool in ("Solo", "Elsewhere")
    kinds = ["handling"] if alone else ["handling", "cooperative"]
    with start(broker, pool, **env) as worker:
        app.AsyncResult(send(app, "short")).get(timeout=TIMEOUT)
        sent = {kind: send(app, kind) for kind in kinds}
        for kind in kinds:
            worker.wait_line(f">> .* started {kind}")
        waiting = [send(app, "short") for _ in range(3)]
        worker.term()
        assert worker.wait() == 0
        assert worker.took < GRACE
        assert app.AsyncResult(sent["handling"]).get(timeout=TIMEOUT) == "handled"
        assert worker.count("derived from none") == 0
        assert worker.count("Traceback|CRITICAL|Could not") == 0
        assert (worker.count(">> a child of our own") > 0) is (pool == "Prefork")
    back = [*waiting, *(task_id for kind, task_id in sent.items() if kind != "handling")]
    assert sorted(broker.drain_queue(app)) == sorted(back)


def test_derived_from_none_of_them(broker: Broker, app: Celery) -> None:
    """One warning, and nothing is put around it: what does not end in time goes back."""
    with start(broker, "Unknown") as worker:
        app.AsyncResult(send(app, "short")).get(timeout=TIMEOUT)
        sent = {kind: send(app, kind) for kind in ("cooperative", "swallowing")}
        short = send(app, "short")
        worker.wait_line(">> .* started", count=4)  # the first short one, too
        worker.term()
        assert worker.wait() == 0
        assert worker.took < GRACE
        assert worker.count("tests.apps.pools.Unknown is derived from none of Celery's") == 1
        assert app.AsyncResult(short).get(timeout=TIMEOUT) == "done"
    assert sorted(broker.drain_queue(app)) == sorted(sent.values())


def test_greenlets_in_a_process_that_is_not_patched(broker: Broker, app: Celery) -> None:
    """Celery overlooks ``-Pgevent``."""
    env = {**broker.env, "GRACE": str(GRACE)}
    with Worker("tests.apps.lifecycle", pool="solo", env=env, args=["-Pgevent"]).ready() as worker:
        worker.term()
        assert worker.wait() == 0
        assert worker.took < GRACE
        assert worker.count("runs in a process that is not patched.* not for `-Pgevent`") == 1
        assert worker.count("Traceback|CRITICAL|Could not|[Ee]ventlet") == 0
