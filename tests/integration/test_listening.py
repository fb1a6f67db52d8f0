"""A worker whose connections come and go unseen goes on fetching (celery/kombu#2492, #2630)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Consumer, Queue
from kombu.asynchronous import Hub

from celery_graceful import Graceful
from tests.conftest import RedisDB
from tests.support.workers import TIMEOUT


@pytest.fixture
def connection(redis_db: RedisDB) -> Iterator[Connection]:
    with Celery("listening", broker=redis_db.url, set_as_current=False) as app:
        Graceful(app)
        with app.connection_for_read() as connection:
            yield connection


def turn_until(hub: Hub, is_so: Callable[[], object], what: str) -> None:
    end, loop = time.monotonic() + TIMEOUT, hub.create_loop()
    while not is_so():
        assert time.monotonic() < end, f"no {what} in {TIMEOUT} s"
        hub.call_later(0.05, int)  # it waits for no longer
        next(loop)


@pytest.mark.parametrize("which", ["fetching", "other"])
def test_it_listens_again(which: str, connection: Connection, redis_db: RedisDB) -> None:
    hub, received, idle = Hub(), [], set()
    channel: Any = connection.default_channel
    connection.transport.register_with_event_loop(connection.connection, hub)
    consumer = Consumer(channel, [Queue("celery")], on_message=received.append, no_ack=True)
    with consumer, Connection(redis_db.url) as producing:
        idle = set(hub.readers)
        for count in range(1, 4):
            turn_until(hub, lambda: channel._in_poll, "command that fetches")
            if which == "fetching":
                lost = channel.client.connection
                lost.disconnect()
                lost.connect()
            else:
                lost = channel.async_pool.get_connection("_")
                lost.connect()
                lost.disconnect()
                channel.async_pool.release(lost)
            producing.default_channel._put("celery", message(producing))
            turn_until(hub, lambda count=count: len(received) == count, "message")
        assert len(set(hub.readers) - idle) == 1
    connection.close()
    assert not hub.on_tick
    assert not connection.transport.cycle.fds


def message(connection: Connection) -> dict[str, Any]:
    channel: Any = connection.default_channel
    prepared: dict[str, Any] = channel.prepare_message("text")
    prepared["properties"].update(
        delivery_tag="1", delivery_info={"exchange": "", "routing_key": "celery"}
    )
    return prepared
