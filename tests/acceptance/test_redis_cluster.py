"""A Redis Cluster, as managed services have it: all keys are in one slot, or the worker says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celery_graceful import Batch
from celery_graceful.store.store import StoreInCluster
from tests.conftest import RabbitVhost, RedisDB
from tests.servers import RedisCluster
from tests.support.doctor import found, graceful_app
from tests.support.workers import TIMEOUT, Worker

APP = "tests.apps.claims"
TAGGED = {"global_keyprefix": "{shop}:"}


@pytest.fixture
def cluster(start_server: Callable[..., RedisCluster]) -> RedisCluster:
    return start_server(RedisCluster)


def test_with_a_hash_tag_everything_holds(cluster: RedisCluster) -> None:
    options: dict[str, Any] = {
        "broker_transport_options": TAGGED,
        "result_backend_transport_options": TAGGED,
    }
    app = graceful_app(cluster.url(), cluster.url(), **options)
    assert found(app, "CG214") == []
    env = {
        "BROKER_URL": cluster.url(),
        "RESULT_URL": cluster.url(),
        **{f"CONF_{name}": repr(value) for name, value in options.items()},
        "GRACE": "30",
    }
    with Worker(APP, pool="threads", env=env) as first:
        first.ready()
        batch = Batch(app=app)
        batch.apply_async(app.signature("nap", (0,)) for _ in range(20))
        assert batch.wait(timeout=TIMEOUT).succeeded == 20
        interrupted = app.send_task("nap", [2])
        first.wait_line(f">> .* started {interrupted.id}")
        first.term()
        assert first.wait() == 0
        assert first.count("1 interrupted")
    with Worker(APP, pool="threads", env=env) as second:
        assert interrupted.get(timeout=TIMEOUT) == interrupted.id
        killed = app.send_task("hold", [3])
        second.wait_line(f">> .* started {killed.id}")
        second.kill()
    with cluster.client() as client:
        client.delete(*client.keys("*graceful:lease:*"))
    with Worker(APP, pool="threads", env=env) as third:
        assert killed.get(timeout=TIMEOUT) == killed.id
        third.term()
        assert third.wait() == 0
    for worker in (first, second, third):
        assert not worker.count("ERROR|Traceback")
    with cluster.client() as client:
        assert {key.partition(":")[0] for key in client.keys("*")} == {"{shop}"}


def test_a_store_whose_keys_are_apart(cluster: RedisCluster, redis_db: RedisDB) -> None:
    app = graceful_app(redis_db.url, redis_db.backend_url, graceful_store=cluster.url())
    (finding,) = found(app, "CG214")
    mend = "set graceful_store_options['global_keyprefix'] to '{graceful}:'"
    assert "same slot" in finding.value
    assert finding.mend.startswith(mend)
    with pytest.raises(StoreInCluster, match=r"same slot.* Mend: set graceful_store_options"):
        Batch(app=app).apply_async([app.signature("nap", (0,))])
    env = {"BROKER_URL": redis_db.url, "RESULT_URL": redis_db.backend_url}
    env["CONF_graceful_store"] = repr(cluster.url())
    with Worker(APP, pool="threads", env=env) as worker:
        worker.wait_line("ERROR.*Checkpoints are not saved: graceful_store: .*same slot")
        assert worker.count(r"Mend: set graceful_store_options\['global_keyprefix'\]")
        ran = app.send_task("nap", [0])
        assert ran.get(timeout=TIMEOUT) == ran.id


def test_a_database_that_no_cluster_has(cluster: RedisCluster, redis_db: RedisDB) -> None:
    options = {"graceful_store": cluster.url(1), "graceful_store_options": TAGGED}
    app = graceful_app(redis_db.url, redis_db.backend_url, **options)
    (finding,) = found(app, "CG214")
    assert "SELECT is not allowed" in finding.value
    assert finding.mend.startswith("name database 0")


def test_beside_rabbitmq(cluster: RedisCluster, rabbit_vhost: RabbitVhost) -> None:
    env = {"BROKER_URL": rabbit_vhost.url, "RESULT_URL": "rpc://"}
    env["CONF_graceful_store"] = repr(cluster.url())
    with Worker(APP, pool="threads", env=env) as worker:
        worker.wait_line("ERROR.*Deaths of tasks are not counted: graceful_store: .*same slot")
        worker.ready()
        worker.term()
        assert worker.wait() == 0
