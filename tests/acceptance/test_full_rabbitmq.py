"""A worker stops while RabbitMQ has no room: it reads no more from who has sent something."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.acceptance.test_poison import start
from tests.conftest import RedisDB, require
from tests.servers import RabbitServer
from tests.support.broker import Broker
from tests.support.workers import wait_until

pytestmark = pytest.mark.rabbitmq

#: Seconds of grace, many times what the stop takes.
GRACE = 120.0


@pytest.fixture(scope="module")
def server() -> Iterator[RabbitServer]:
    require(RabbitServer)
    with RabbitServer() as server:
        yield server


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_stop_waits_for_no_answer_to_events(
    pool: str, redis_db: RedisDB, server: RabbitServer
) -> None:
    """Its heartbeats are not read, nor is the end of their connection."""
    url = server.url(server.vhost())
    broker = Broker("rabbitmq", url, redis_db.backend_url, redis_db.client)
    with start(broker, pool, GRACE=str(GRACE)).ready() as worker:
        server.control("set_disk_free_limit", str(10**15))
        try:
            wait_until(lambda: "blocked" in states(server), "a heartbeat is not read")
            worker.term()
            assert worker.wait(GRACE / 3) == 0
        finally:
            server.control("set_disk_free_limit", "1000000")
        assert worker.count("Stopped: 0 finished")


def states(server: RabbitServer) -> list[str]:
    """Of all connections, as RabbitMQ says it."""
    return [one.get("state", "") for one in json.loads(server.api("GET", "connections"))]
