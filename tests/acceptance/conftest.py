"""Fixtures of the acceptance tests: each runs with Redis and with RabbitMQ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery
from celery.backends.base import Backend
from celery.backends.database import DatabaseBackend
from kombu import Connection

from tests.conftest import RedisDB
from tests.servers import RedisServer
from tests.support.broker import Broker
from tests.support.operators import make_app
from tests.support.patience import has_patience
from tests.support.results_away import Site


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


@pytest.fixture(params=["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def site(
    request: pytest.FixtureRequest, start_server: Callable[..., RedisServer], tmp_path: Path
) -> Iterator[Site]:
    results = start_server(RedisServer, appendonly=True)
    if request.param == "redis":
        broker = start_server(RedisServer).url(0)
    else:
        broker = request.getfixturevalue("rabbit_vhost").url
    site = Site.of(broker, results, tmp_path / "go")
    if request.param == "rabbitmq":
        site.app.conf.graceful_store = results.url(1)
        site.env["CONF_graceful_store"] = repr(results.url(1))
    yield site
    site.sent.clear()
    site.app.close()


@pytest.fixture
def database(start_server: Callable[..., RedisServer], tmp_path: Path) -> Site:
    """Of an app whose results are in a file; in place of their server, its folder."""
    if DatabaseBackend.exception_safe_to_retry is Backend.exception_safe_to_retry:
        pytest.skip("Celery before 5.7")
    folder = tmp_path / "results"
    folder.mkdir()
    broker, url = start_server(RedisServer).url(0), f"db+sqlite:///{folder}/results.db"
    env = {"BROKER_URL": broker, "RESULT_URL": url, "GRACE": "60"}
    return Site(make_app(broker, url), folder, tmp_path / "go", env)
