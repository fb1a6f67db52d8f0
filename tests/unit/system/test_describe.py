"""Errors of Redis and brokers, as the log tells them."""

from __future__ import annotations

import logging

import pytest
import redis
from kombu import Connection

from celery_graceful.messages.bounded_connections import BrokerAway, bounded_connection
from celery_graceful.store.store import StoreAway
from celery_graceful.system.describe import describe
from celery_graceful.task.trace_log import install_filter
from tests.support.logs import own_records
from tests.support.processes import free_port


@pytest.mark.parametrize(
    ("exc", "said"),
    [
        (redis.ConnectionError("Connection closed"), "ConnectionError: Connection closed (h:1)"),
        (redis.TimeoutError("from h:1"), "TimeoutError: from h:1"),
        (OSError(111, "refused"), "ConnectionRefusedError: [Errno 111] refused (h:1)"),
        (KeyError(), "KeyError (h:1)"),
        (StoreAway("the broker: TimeoutError: x (h:2)"), "the broker: TimeoutError: x (h:2)"),
        (ValueError("two\n lines"), "ValueError: two lines (h:1)"),
    ],
)
def test_type_message_and_address(exc: Exception, said: str) -> None:
    assert describe(exc, "h:1") == said


@pytest.mark.parametrize(
    "message",
    [
        "Cannot connect to redis://user:s3cret@h:6379/0",
        "Cannot connect to amqp://:s3cret@h//",
        "unknown command `HELLO`, with args beginning with: `3` `AUTH` `user` `s3cret`",
        "Port could not be cast to integer value as 's3cret'",
    ],
)
def test_no_password(message: str) -> None:
    said = describe(ValueError(message))
    assert "s3cret" not in said
    assert said.startswith("ValueError: ")


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_a_broker_that_is_away_is_named(scheme: str) -> None:
    port = free_port()
    broker = Connection(f"{scheme}://user:s3cret@127.0.0.1:{port}//")
    with pytest.raises(BrokerAway) as caught, bounded_connection(broker, 1.0):
        pass
    said = describe(caught.value)
    assert "Error" in said.partition(":")[0]
    assert "refused" in said
    assert f"127.0.0.1:{port}" in said
    assert "s3cret" not in said


def test_celery_s_lines_say_it_too(caplog: pytest.LogCaptureFixture) -> None:
    install_filter("redis://h:1//")
    consumer = logging.getLogger("celery.worker.consumer.consumer")
    with caplog.at_level(logging.WARNING, consumer.name):
        consumer.warning("%s (%r)", "Connection lost", redis.ConnectionError("closed by server"))
        consumer.error("Cannot connect to %s: %s.", "redis://h:1//", OSError("refused"))
    assert [record.getMessage() for record in own_records(caplog)] == [
        "Connection lost (ConnectionError: closed by server (redis://h:1//))",
        "Cannot connect to redis://h:1//: OSError: refused.",
    ]
