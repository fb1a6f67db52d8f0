"""What cannot be given back at once, with a real broker."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from kombu import Queue

from celery_graceful.deliveries.requeue import COPY_AFTER, NotTaken, Requeue
from celery_graceful.deliveries.stage import Stage
from celery_graceful.messages.republish import COUNT
from tests.servers import RedisServer
from tests.support.raw import raw_messages
from tests.support.workers import TIMEOUT, wait_until


def a_loop(ring: Callable[[], object] = lambda: None) -> Any:
    return SimpleNamespace(ring=ring, fetching=lambda: False, queue_of=lambda tag: None)


def held(message: Any) -> Any:
    rest = {"has_begun": False, "started_at": None, "stage": Stage.RELEASED}
    return SimpleNamespace(acknowledged=True, message=message, **rest)


def test_a_broker_that_cannot_be_reached_is_tried_again(
    start_server: Callable[..., RedisServer],
) -> None:
    server = start_server(RedisServer)
    app = Celery(broker=server.url())
    task_id = app.signature("some_task", (1, 2), priority=3).apply_async().id
    with app.connection_for_read() as connection:
        message: Any = connection.default_channel.basic_get("celery", no_ack=True)
    assert message.headers["id"] == task_id
    early = held(message)
    rings: list[None] = []
    requeue = Requeue(app, a_loop(lambda: rings.append(None)))

    server.kill()
    requeue.give_back([early])  # type: ignore[list-item]
    assert requeue.deferred
    wait_until(lambda: len(rings) == 2, "there is room, and it is time")
    requeue.flush()
    assert requeue.deferred, "still away"
    wait_until(lambda: len(rings) == 4, "once more")

    server.start()
    requeue.flush(timeout=TIMEOUT)
    assert not requeue.deferred
    with server.client() as client:
        (sent,) = raw_messages(client)[task_id]
    assert sent["properties"]["priority"] == 3


@pytest.mark.parametrize("tail", [False, True])
def test_nothing_is_acknowledged_whose_copy_was_not_sent(tail: bool) -> None:
    request = Mock(acknowledged=False, orphaned=False)
    request.message = Mock(headers={COUNT: 0 if tail else COPY_AFTER}, delivery_info={})
    requeue = Requeue(Celery(broker="amqp://127.0.0.1:1//"), a_loop())
    requeue.give_back([request], tail=tail)
    request.on_ack.assert_not_called()
    request.on_reject.assert_called_once()


def test_what_a_broker_refuses_is_tried_again_and_the_rest_is_sent_once(rabbit_vhost: Any) -> None:
    app = Celery(broker=rabbit_vhost.url)
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    requests = []
    with app.connection_for_read() as connection:
        channel = connection.default_channel

        def send(name: str, arguments: dict[str, Any]) -> None:
            app.send_task("some_task", queue=Queue(name, queue_arguments=arguments))
            wait_until(lambda: rabbit_vhost.queue_length(name), "it is there")

        for name, arguments in (("full", full), ("gone", {}), ("there", {})):
            channel.queue_declare(name, arguments=arguments, durable=True, auto_delete=False)
            send(name, arguments)
            message = channel.basic_get(name, no_ack=True)
            requests.append(held(message))
        again = held(copy(message))
        requests.insert(1, again)
        requests[1].message.delivery_info = {"exchange": "no such exchange", "routing_key": "x"}
        send("full", full)
        channel.queue_delete("gone")
        rings: list[None] = []
        requeue = Requeue(app, a_loop(lambda: rings.append(None)))
        requeue.give_back(requests, timeout=TIMEOUT)  # type: ignore[arg-type]
        sent = channel.basic_get("there", no_ack=True)
        assert sent.headers["id"] == requests[3].message.headers["id"]

        wait_until(lambda: len(rings) == 2, "it is time to try again")
        with pytest.raises(NotTaken) as raised:  # it was the last time
            requeue.flush(timeout=TIMEOUT, own_thread=True)
        assert raised.value.requests == requests[:3]

        channel.queue_purge("full")
        channel.queue_declare("gone", durable=True, auto_delete=False)
        with pytest.raises(NotTaken) as raised:
            requeue.flush(timeout=TIMEOUT, own_thread=True)
        assert raised.value.requests == requests[1:2]
        for name, request in (("full", requests[0]), ("gone", requests[2])):
            sent = channel.basic_get(name, no_ack=True)
            assert sent.headers["id"] == request.message.headers["id"]
        requests[1].message.delivery_info = {"exchange": "", "routing_key": "there"}
        requeue.flush(timeout=TIMEOUT, own_thread=True)
        assert not requeue.deferred
        assert rabbit_vhost.queue_length("full") == rabbit_vhost.queue_length("gone") == 0, "once"
