"""Each end of a task ends the member that it is, once, and nothing else does; in every pool."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group

from tests.support.batches import Made
from tests.support.broker import Broker
from tests.support.workers import Worker, wait_until

POOLS = ["prefork", "threads", "gevent", "solo"]
KINDS = ["graceful", "plain", "late"]

CALLBACKS = ("on_success", "on_complete", "on_failure")


@pytest.fixture(params=["redis", "redis with another store", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> Broker:
    db = request.getfixturevalue("redis_db")
    url = db.url
    if request.param == "rabbitmq":
        url = request.getfixturevalue("rabbit_vhost").url
    return Broker(request.param, url, db.backend_url, db.client)


@pytest.fixture
def app(broker: Broker, app: Celery) -> Celery:
    if broker.name != "redis":
        app.conf.graceful_store = broker.backend_url
    return app


def start(broker: Broker, pool: str, concurrency: int = 2, **env: str) -> Worker:
    if broker.name != "redis":
        env["CONF_graceful_store"] = repr(broker.backend_url)
    return Worker(
        "tests.apps.members",
        pool=pool,
        concurrency=concurrency,
        env={
            "BROKER_URL": broker.url,
            "RESULT_URL": broker.backend_url,
            "EFFECTS": broker.backend_url,
            **env,
        },
    )


@pytest.fixture
def store(broker: Broker) -> Iterator[redis.Redis]:
    """Where effects are noted."""
    with redis.Redis.from_url(broker.backend_url, decode_responses=True) as client:
        yield client


def do(app: Celery, kind: str, *args: Any) -> Any:
    return app.signature(kind, args=args)


def ended_by_themselves(app: Celery, made: Made, kind: str) -> dict[str, str]:
    """Members by what is to become of them."""
    again = do(app, kind, "succeed")
    return {
        f"succeeded {kind}": made.send(do(app, kind, "succeed")),
        f"failed {kind}": made.send(do(app, kind, "fail")),
        f"succeeded {kind} after retries": made.send(do(app, kind, "retry", 2)),
        f"failed {kind} after retries": made.send(do(app, kind, "retry_too_often")),
        f"succeeded {kind} ignored": made.send(do(app, kind, "ignore")),
        f"failed {kind} rejected": made.send(do(app, kind, "reject")),
        # RabbitMQ drops what expires in the queue, and tells nobody.
        f"revoked {kind} expired": made.send(do(app, kind, "succeed"), expires=3, countdown=3.5),
        f"succeeded {kind} replaced": made.send(do(app, kind, "replace", again)),
        f"failed {kind} replaced": made.send(do(app, kind, "replace", do(app, kind, "fail"))),
        f"failed {kind} replaced by a group": made.send(
            do(app, kind, "replace", group([again, do(app, kind, "fail")]))
        ),
        f"succeeded {kind} replaced by a chain": made.send(
            do(app, kind, "replace", chain(again, app.signature("add")))
        ),
        f"succeeded {kind} chain": made.send(chain(again, app.signature("add"))),
        f"failed {kind} chain": made.send(chain(do(app, kind, "fail"), app.signature("add"))),
        f"succeeded {kind} chord": made.send(chord([again, again], app.signature("add", args=[1]))),
        f"failed {kind} chord": made.send(
            chord([again, do(app, kind, "fail")], app.signature("add", args=[1]))
        ),
    }


def check(made: Made, members: dict[str, str]) -> None:
    made.wait(pending=0)
    expected = {name: name.partition(" ")[0] for name in members}
    assert made.outcomes(members) == expected


@pytest.mark.parametrize("pool", POOLS)
def test_ends(pool: str, broker: Broker, app: Celery, store: redis.Redis) -> None:
    with start(broker, pool).ready() as worker:
        made = Made(app, *CALLBACKS)
        members: dict[str, str] = {}
        for kind in KINDS:
            members.update(ended_by_themselves(app, made, kind))
            if kind != "plain":  # which is acknowledged at its start
                members[f"succeeded {kind} requeued"] = made.send(do(app, kind, "requeue"))
        made.sent()
        check(made, members)
        wait_until(lambda: made.status.finished, "its end")
        effects = {name: store.lrange(f"effects:{made.id}:{name}", 0, -1) for name in CALLBACKS}
        assert {name: len(found) for name, found in effects.items()} == {
            "on_success": 0,
            "on_complete": 1,
            "on_failure": 1,
        }
        worker.term()
        worker.wait()
