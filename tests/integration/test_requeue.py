"""What cannot be given back at once, with a real broker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery

from celery_graceful.requeue import COPY_AFTER, COUNT, Requeue
from tests.raw import raw_messages
from tests.servers import RedisServer
from tests.workers import TIMEOUT


def test_a_broker_that_cannot_be_reached_is_tried_again(
    start_server: Callable[..., RedisServer],
) -> None:
    server = start_server(RedisServer)
    app = Celery(broker=server.url())
    task_id = app.signature("some_task", (1, 2), priority=3).apply_async().id
    with app.connection_for_read() as connection:
        message: Any = connection.default_channel.basic_get("celery", no_ack=True)
    assert message.headers["id"] == task_id
    early = SimpleNamespace(acknowledged=True, message=message)
    requeue = Requeue(app)
    rung = threading.Event()
    requeue.ring_loop = rung.set

    server.kill()
    requeue.give_back([early])  # type: ignore[list-item]
    assert requeue.deferred
    assert rung.wait(TIMEOUT)
    rung.clear()
    requeue.flush()
    assert requeue.deferred, "still away"
    assert rung.wait(TIMEOUT)

    server.start()
    requeue.flush()
    assert not requeue.deferred
    with server.client() as client:
        (sent,) = raw_messages(client)[task_id]
    assert sent["properties"]["priority"] == 3


@pytest.mark.parametrize("tail", [False, True])
def test_nothing_is_acknowledged_whose_copy_was_not_sent(tail: bool) -> None:
    request = Mock(acknowledged=False, orphaned=False)
    request.message = Mock(headers={COUNT: 0 if tail else COPY_AFTER}, delivery_info={})
    Requeue(Celery(broker="amqp://127.0.0.1:1//")).give_back([request], tail=tail)
    request.on_ack.assert_not_called()
    request.on_reject.assert_called_once()
