"""A connection that is there before it is needed, with real brokers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty
from typing import Any

import pytest
from celery import Celery

from celery_graceful.messages.bounded_connections import (
    BrokerAway,
    SpareConnections,
    bounded_connection,
    use,
)
from tests.servers import RedisServer
from tests.support.workers import TIMEOUT, wait_until


class Asked:
    """What was done with connections."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.connections: list[Any] = []

    def __call__(self, connection: Any) -> None:
        self.threads.append(threading.current_thread())
        self.connections.append(connection)
        with connection.SimpleQueue("asked") as queue:
            queue.put(len(self.connections))


@pytest.fixture(params=["redis_db", "rabbit_vhost"])
def app(request: pytest.FixtureRequest) -> Celery:
    return Celery(broker=request.getfixturevalue(request.param).url)


def queued(app: Celery, count: int = 1) -> list[int]:
    """All that there is: so many at least, which RabbitMQ may not have put there yet."""
    with app.connection_for_read() as connection, connection.SimpleQueue("asked") as queue:

        def take(**options: Any) -> int:
            message = queue.get(**options)
            message.ack()
            return int(message.payload)

        found = [take(timeout=TIMEOUT) for _ in range(count)]
        with suppress(Empty):
            found.append(take(block=False))
    return found


def test_one_connection_serves_all_in_a_thread_of_its_own(app: Celery) -> None:
    asked = Asked()
    spare_connections = SpareConnections(app.connection_for_read(), TIMEOUT)
    use(spare_connections, app.connection_for_read(), asked, TIMEOUT)
    use(spare_connections, app.connection_for_read(), asked, TIMEOUT)
    assert asked.connections[0] is asked.connections[1]
    assert asked.threads[0] is asked.threads[1] is not threading.current_thread()
    assert queued(app, 2) == [1, 2]
    spare_connections.close()
    wait_until(lambda: not asked.connections[0].connected, "the connection is closed")
    # Asked too late, it opens another one.
    use(spare_connections, app.connection_for_read(), asked, TIMEOUT)
    assert asked.threads[2] is threading.current_thread()
    assert queued(app) == [3]


def test_an_error_is_for_who_asked_and_ends_the_connection(app: Celery) -> None:
    def fail(connection: Any) -> None:
        raise ConnectionError("lost in the middle")

    asked = Asked()
    spare_connections = SpareConnections(app.connection_for_read(), TIMEOUT)
    with pytest.raises(ConnectionError, match="lost in the middle"):
        use(spare_connections, app.connection_for_read(), fail, TIMEOUT)
    use(spare_connections, app.connection_for_read(), asked, TIMEOUT)
    assert asked.threads == [threading.current_thread()]
    assert queued(app) == [1]


def test_nobody_waits_for_a_broker_that_refuses(
    start_server: Callable[..., RedisServer], redis_db: Any
) -> None:
    server = start_server(RedisServer)
    app = Celery(broker=server.url())
    asked = Asked()
    server.kill()
    spare_connections = SpareConnections(app.connection_for_read(), TIMEOUT)
    with (
        pytest.raises(BrokerAway),
        bounded_connection(app.connection_for_read(), TIMEOUT) as c,
    ):
        asked(c)

    def has_gone() -> bool:
        try:
            return not spare_connections.call(asked)
        except BrokerAway:  # refused while we waited
            return False

    wait_until(has_gone)
    server.start()
    use(spare_connections, app.connection_for_read(), asked, TIMEOUT)
    assert queued(app) == [1]


def test_each_host_is_tried_once(rabbit_vhost: Any) -> None:
    """kombu's own retries would take 2 s each."""
    refused = "amqp://127.0.0.1:1//"
    asked = Asked()
    app = Celery(broker=[refused, rabbit_vhost.url])
    with bounded_connection(app.connection_for_read(), TIMEOUT) as connection:
        asked(connection)
    assert queued(Celery(broker=rabbit_vhost.url)) == [1]
    app = Celery(broker=[refused, refused])
    with (
        pytest.raises(BrokerAway, match="refused"),
        bounded_connection(app.connection_for_read(), TIMEOUT),
    ):
        pytest.fail("connected")
