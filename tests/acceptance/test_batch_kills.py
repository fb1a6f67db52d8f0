"""Batches whose workers are killed, restarted, or cut off from the store."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import redis
from celery import Celery, chord

from celery_graceful.batches.ledger import CHUNK
from tests.acceptance.test_batch_ends import CALLBACKS, broker, do, start, store
from tests.conftest import RabbitVhost, RedisDB
from tests.servers import RedisServer
from tests.support.batches import Made
from tests.support.broker import Broker
from tests.support.workers import end_leases, wait_until

__all__ = ["broker", "store"]

#: How often workers are killed between the last end and the callback.
KILLS = int(os.environ.get("BATCH_KILLS", 2))


@pytest.fixture
def app(broker: Broker, app: Celery) -> Celery:
    if broker.name != "redis":
        app.conf.graceful_store = broker.backend_url
    return app


def effects(store: redis.Redis, made: Made) -> dict[str, list[str]]:
    return {name: store.lrange(f"effects:{made.id}:{name}", 0, -1) for name in CALLBACKS}


@pytest.mark.timeout(180 + 30 * KILLS)
@pytest.mark.parametrize("at", ["due", "published"])
def test_killed_before_a_callback_is_published(
    at: str, broker: Broker, app: Celery, store: redis.Redis
) -> None:
    """Once it is in the outbox, or sent and still there: somebody else publishes it, once."""
    with start(broker, "threads", SWEEP="1").ready():
        for size in itertools.islice(itertools.cycle((1, 3)), KILLS):
            made = Made(app, "on_success", "on_complete")
            for _ in range(size):
                made.send(do(app, "late", "succeed"), queue="hooked")
            made.sent()
            with start(broker, "threads", "-Q", "hooked", STOP_AT=at) as hooked:
                hooked.wait_line(f"stops, {at}")
                hooked.signal(signal.SIGKILL)
                hooked.wait()
            wait_until(lambda made=made: made.status.finished, "its end")
        ran = effects(store, made)
        assert [len(ran[name]) for name in CALLBACKS] == [1, 1, 0]
        assert store.get("effects") == str(2 * KILLS)


@pytest.mark.parametrize("tracked", [False, True])
def test_killed_in_the_middle_of_a_callback(
    tracked: bool, broker: Broker, app: Celery, store: redis.Redis
) -> None:
    """It begins with several tasks: each runs once, also those that had been sent, and the rest."""
    env = {"SWEEP": "1", "CONF_graceful_track_chords": repr(tracked)}
    pieces = [app.signature("piece", args=["effects", i], immutable=True) for i in range(4)]
    body = app.signature("whole", args=["effects"])
    with start(broker, "threads", **env).ready() as other:
        made = Made(app, on_complete=chord(pieces, body, app=app))
        made.send(do(app, "late", "succeed"), queue="hooked")
        made.sent()
        with start(broker, "threads", "-Q", "hooked", STOP_AT="half", **env) as hooked:
            hooked.wait_line("stops, half")
            wait_until(lambda: store.llen("effects") >= 2, "what was sent has run")
            hooked.signal(signal.SIGKILL)
            hooked.wait()
        wait_until(lambda: made.status.finished, "its end")
        *ran, whole = store.lrange("effects", 0, -1)
        assert (sorted(ran), whole) == (list("0123"), "all [0, 1, 2, 3]")
        other.wait_line("is left out: another copy of it runs, or has", count=2)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_killed_while_it_adds_a_batch(
    pool: str, broker: Broker, app: Celery, store: redis.Redis
) -> None:
    """Run again it goes on with that one: each task runs once, and nothing waits for ever."""
    size = CHUNK + 20
    with start(broker, "threads", "-Q", "celery", SWEEP="1").ready():
        made = Made(app, "on_complete")
        made.send(app.signature("adds", args=["pieces", size]), queue="hooked")
        made.sent()
        with start(broker, pool, "-Q", "hooked") as hooked:
            hooked.wait_line("half is added")
            (inner,) = made.ledger.kids(made.id)
            ended = partial(made.ledger.status, inner)
            wait_until(lambda: ended().succeeded == CHUNK, "what was sent has run")
            hooked.signal(signal.SIGKILL, group=True)
            hooked.wait()
            end_leases(broker.client if broker.name == "redis" else store, hooked)
        with start(broker, pool, "-Q", "hooked"):
            wait_until(lambda: made.status.finished, "its end")
    assert sorted(map(int, store.lrange("pieces", 0, -1))) == list(range(size))
    assert store.get("pieces:runs") == "2"
    assert (ended().state.value, ended().succeeded) == ("done", size)
    assert len(store.lrange(f"effects:{inner}:on_success", 0, -1)) == 1
    assert len(effects(store, made)["on_complete"]) == 1


def test_rolling_restarts(broker: Broker, app: Celery, store: redis.Redis) -> None:
    """Interruptions, rescues and retries end nothing early, and nothing stays behind."""
    env = {"SWEEP": "1", "CONF_graceful_lease_ttl": "10", "CONF_graceful_heartbeat_interval": "0.5"}
    workers = [start(broker, pool, **env).ready() for pool in ("prefork", "threads")]
    batches: list[Made] = []

    def send() -> None:
        for size in (1, 2, 5):
            made = Made(app, *CALLBACKS)
            for number in range(size):
                kind = ("graceful", "late")[number % 2]
                made.send(
                    (
                        app.signature("nap", args=[0.3]),
                        do(app, kind, "retry", 1),
                        do(app, kind, "succeed"),
                    )[number % 3]
                )
            made.sent()
            batches.append(made)

    try:
        for kill, number in enumerate([signal.SIGTERM, signal.SIGKILL, signal.SIGTERM]):
            for _ in range(3):
                send()
            old = workers.pop(0)
            old.signal(number, group=number == signal.SIGKILL)
            pool = ("threads", "prefork", "gevent")[kill]
            workers.append(start(broker, pool, **env).ready())
            old.wait()
            if number == signal.SIGKILL:
                end_leases(broker.client if broker.name == "redis" else store, old)
            old.kill()
        for made in batches:
            wait_until(lambda made=made: made.status.finished, "its end")
            status, ran = made.status, effects(store, made)
            assert (status.succeeded, status.state.value) == (status.total, "done")
            assert {name: len(some) for name, some in ran.items()} == {
                "on_success": 1,
                "on_complete": 1,
                "on_failure": 0,
            }
            assert set(itertools.chain(*ran.values())) == {"0 0 0"}
    finally:
        for worker in workers:
            worker.kill()


def test_a_store_that_is_away(
    start_server: Callable[..., Any], rabbit_vhost: RabbitVhost, redis_db: RedisDB
) -> None:
    """Members run and are acknowledged; when it is back it hears of them."""
    server = start_server(RedisServer)
    broker = Broker("rabbitmq", rabbit_vhost.url, server.url(), None)
    with broker.app() as app, start(broker, "threads", RESULT_URL=redis_db.url).ready() as worker:
        app.conf.update(graceful_store=broker.backend_url, result_backend=redis_db.url)
        made = Made(app)
        kinds = ("late", "plain")
        sigs = [(do(app, kind, "succeed"), f"{kind}{n}") for n in range(10) for kind in kinds]
        for _, member in sigs:
            made.register(member)
        made.sent()
        server.pause()
        try:
            for sig, member in sigs:
                made.send_registered(sig, member, ignore_result=True)
            # More than are prefetched: so they are acknowledged.
            worker.wait_line("succeeded in", count=len(sigs))
        finally:
            server.resume()
        made.wait(succeeded=len(sigs))
        worker.term()
        assert worker.wait() == 0
