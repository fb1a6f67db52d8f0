"""Fixtures of the acceptance tests: each runs with Redis and with RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery

from tests.support.broker import Broker


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> Broker:
    db = request.getfixturevalue("redis_db")
    url = db.url
    if request.param == "rabbitmq":
        url = request.getfixturevalue("rabbit_vhost").url
    return Broker(request.param, url, db.backend_url, db.client)


@pytest.fixture
def app(broker: Broker) -> Iterator[Celery]:
    with broker.app() as app:
        yield app
