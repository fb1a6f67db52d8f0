"""Keys of queues and bells, by what the transport is told: ``sep``, ``global_keyprefix``."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from kombu import Producer

from celery_graceful import Batch, Graceful
from celery_graceful.claims import ringing
from celery_graceful.claims.moves import Move, move
from celery_graceful.claims.queue_lists import queue_of
from celery_graceful.store.app_stores import broker_store
from celery_graceful.store.store import Store
from celery_graceful.unusable.waiting import Kind, Stray, WaitingRoom
from tests.conftest import RedisDB

OPTIONS = [
    {},
    {"sep": ":"},
    {"sep": "%.", "global_keyprefix": "{p}:"},
    {"sep": ":", "global_keyprefix": "p:"},
]


@pytest.fixture(params=OPTIONS, ids=str)
def store(request: pytest.FixtureRequest, redis_db: RedisDB) -> Store:
    app = Celery("keys", broker=redis_db.url, set_as_current=False)
    app.conf.broker_transport_options = request.param
    Graceful(app)
    found = broker_store(app)
    assert found is not None
    return found


def listed(store: Store, queue: str, priority: int) -> str:
    """The key of a list, with the prefix, as kombu makes it."""
    return f"{store.prefix}{queue}{store.separator if priority else ''}{priority or ''}"


@pytest.mark.parametrize("queue", ["celery", "a:b", "mail.7"])
@pytest.mark.parametrize("priority", [0, 3])
def test_what_goes_back_rings_for_its_queue(
    store: Store, redis_db: RedisDB, queue: str, priority: int
) -> None:
    client, name = redis_db.client, listed(store, queue, priority)
    client.hset(f"{store.prefix}graceful:claims:me", "1", f"{name}\0message")
    moved = move(store, "me", [Move(1, name, "message")], tail=False, timeout=1.0)
    assert moved == 1
    assert client.lrange(name, 0, -1) == ["message"]
    bells = client.keys(f"{store.prefix}graceful:bell:*")
    assert bells == [f"{store.prefix}graceful:bell:{queue}"]


@pytest.mark.parametrize("priority", [0, 3])
def test_what_waits_is_of_its_queue(store: Store, redis_db: RedisDB, priority: int) -> None:
    """Whatever its priority: workers of that queue look for it."""
    name = listed(store, "celery", priority)
    redis_db.client.hset(f"{store.prefix}graceful:claims:me", "1", f"{name}\0message")
    room = WaitingRoom(store)
    assert room.wait("me", 60, [Stray("id", Kind("", "new"), "1")]) == ["waits"]
    assert room.kinds() == {Kind("celery", "new"): 1}


def test_queues_of_lists(store: Store) -> None:
    for queue in ("celery", "a:b", "mail.x"):
        keys = [listed(store, queue, priority).removeprefix(store.prefix) for priority in (0, 3, 9)]
        assert {queue_of(store, key) for key in keys} == {queue}


@pytest.mark.parametrize("prefix", ["", "p:"])
def test_a_batch_rings_for_its_workers_alone(redis_db: RedisDB, prefix: str) -> None:
    """Its user may touch no other key; and its bell is bounded, that of others is not touched."""
    client: Any = redis_db.client
    other = "other:graceful:bell:celery" if not prefix else "graceful:bell:celery"
    client.rpush(other, *range(40))
    app = Celery("keys", broker=redis_db.url, set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": prefix}
    Graceful(app)
    one = app.signature("one", immutable=True)
    for _ in range(30):
        Batch(app=app).apply_async(one.clone() for _ in range(2))
    app.close()
    assert client.llen(f"{prefix}graceful:bell:celery") == ringing.RINGS
    assert client.llen(other) == 40
    assert client.llen(f"{prefix}celery") == 60


@pytest.mark.skipif(not hasattr(Producer, "batch"), reason="this kombu has no batches")
def test_a_batch_that_is_full_is_sent_and_rung_for(redis_db: RedisDB) -> None:
    """Of kombu's own test, whose client has no scripts."""
    client = redis_db.client
    with Celery("keys", broker=redis_db.url, set_as_current=False) as app:
        Graceful(app)
        with (
            app.amqp.producer_pool.acquire(block=True) as producer,
            producer.batch(max_size=2),
        ):
            seen = []
            for number in range(3):
                app.send_task("one", [number], producer=producer, queue="celery")
                seen.append((client.llen("celery"), client.llen("graceful:bell:celery")))
    assert seen == [(0, 0), (2, 1), (2, 1)]
    assert (client.llen("celery"), client.llen("graceful:bell:celery")) == (3, 2)
