"""What a message says of its task, by either protocol."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from kombu.utils.json import dumps

from celery_graceful.messages.fields import fields_of, parse


@pytest.mark.parametrize("protocol", [1, 2])
def test_it_is_in_the_headers_or_in_the_body(protocol: int) -> None:
    with Celery(broker="memory://", set_as_current=False) as app:
        app.conf.task_protocol = protocol
        with app.connection_for_write() as connection:
            channel = connection.default_channel
            queue = app.amqp.queues["celery"](channel)
            queue.declare()
            queue.purge()  # of what other tests of this process have sent
            app.send_task("add", task_id="a", expires=60, countdown=5, connection=connection)
            message = channel.basic_get("celery", no_ack=True)
    fields = fields_of(parse(dumps(message.serializable())))
    assert (fields["task"], fields["id"]) == ("add", "a")
    assert fields["expires"] > fields["eta"]
    assert ("task" in message.headers) == (protocol == 2)


@pytest.mark.parametrize("body", ["no JSON", "[1]", "null"])
def test_what_says_nothing(body: str) -> None:
    raw: dict[str, Any] = {"body": body, "properties": {}, "content-type": "application/json"}
    assert fields_of(parse(dumps(raw))) == {}
