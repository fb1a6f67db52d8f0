"""What a message says of itself before it is delivered."""

from __future__ import annotations

import json

import pytest
from celery import Celery

from celery_graceful.claims.undelivered import Fetched, Undelivered


@pytest.mark.parametrize("protocol", [1, 2])
def test_the_task_of_a_message(protocol):
    app = Celery(broker="memory://", set_as_current=False)
    app.conf.task_protocol = protocol
    app.conf.task_default_queue = f"protocol {protocol}"  # those in memory are of all tests
    app.send_task("add", task_id="id-1")
    with app.connection() as connection:
        text = json.dumps(connection.default_channel._get(app.conf.task_default_queue))
    assert Fetched("celery", text.encode(), None).task == ("id-1", "add")


@pytest.mark.parametrize("text", [b"\xff", "no json", "[]", '{"properties": {}, "body": ""}'])
def test_what_says_nothing(text):
    assert Fetched("celery", text, None).task == ("", "")


def test_who_takes_it_has_it():
    undelivered = Undelivered()
    one, two, three = (Fetched("celery", "", tag) for tag in "123")
    undelivered.add([one, two, three])
    assert undelivered.next() is one
    assert undelivered.take() == [two, three]
    assert undelivered.next() is None
