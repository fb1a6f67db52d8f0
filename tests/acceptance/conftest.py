"""Fixtures of the acceptance tests: each runs with Redis and with RabbitMQ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery
from kombu import Connection

from tests.conftest import RedisDB
from tests.support.broker import Broker
from tests.support.patience import has_patience


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who see to it that nobody waits for one that is away have another one."""
    has_patience(monkeypatch)


@pytest.fixture
def make_broker(
    request: pytest.FixtureRequest,
    redis_db: RedisDB,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], Broker]:
    """A broker by its kind: Redis, RabbitMQ (or its quorum queues), or a database of SQLAlchemy."""

    def make(name: str) -> Broker:
        if name == "sqla":
            url = f"sqla+sqlite:///{tmp_path}/broker.db"
            # Of two workers that find no table, or no queue in it, one fails to create it (kombu).
            with Connection(url) as connection:
                connection.SimpleQueue("celery").close()
        elif name in ("rabbitmq", "quorum"):
            url = request.getfixturevalue("rabbit_vhost").url
        else:
            url = redis_db.url
        if name == "quorum":
            monkeypatch.setenv("QUORUM", "20")
        return Broker(name, url, redis_db.backend_url, redis_db.client)

    return make


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest, make_broker: Callable[[str], Broker]) -> Broker:
    return make_broker(request.param)


@pytest.fixture
def app(broker: Broker) -> Iterator[Celery]:
    with broker.app() as app:
        yield app
