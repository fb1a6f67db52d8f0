"""What is wrong with a message, and what is not."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, chain, chord
from kombu import Queue
from kombu.message import Message

from celery_graceful.messages.validation import flaw_of, has_text
from tests.support.unusable import KINDS, SECRET, headers_of


def message(kind: dict[str, Any]) -> Message:
    body = kind.get("body", [[], {}, {}])
    return Message(
        body=body if isinstance(body, bytes) else json.dumps(body),
        headers=kind.get("headers", headers_of()),
        content_type=kind.get("content_type", "application/json"),
        content_encoding=kind.get("content_encoding", "utf-8"),
        accept={"application/json"},
    )


@pytest.fixture
def sent() -> list[Message]:
    """What Celery sends, with all that may follow a task."""
    app = Celery(broker="memory://", backend="cache+memory://", set_as_current=False)
    add = app.signature("known", args=(1,))
    found = []
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        queue = Queue("celery")(channel)  # of memory://, which is one for all tests of a process
        queue.declare()
        queue.purge()
        add.apply_async(link=[add, add], link_error=add, connection=connection)
        add.apply_async(countdown=5, expires=60, time_limit=5, soft_time_limit=2.5, shadow="x")
        add.apply_async(stamped_headers=["a"], a="1", connection=connection)
        (chain(add, add) | chord([add, add], add)).apply_async(connection=connection)
        while (one := channel.basic_get("celery", no_ack=True)) is not None:
            found.append(one)
    return found


def test_an_id_that_is_a_uuid_is_its_text() -> None:
    """As kombu reads it where ``task_id=uuid4()`` was sent."""
    task_id = uuid4()
    one = message({"headers": headers_of(id=task_id, root_id=task_id)})
    assert flaw_of(one) is None
    assert (one.headers["id"], one.headers["root_id"]) == (str(task_id), str(task_id))


def test_what_celery_sends_has_no_flaw(sent: list[Message]) -> None:
    assert len(sent) == 4
    for one in sent:
        assert flaw_of(one) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"task": "known", "id": "1"},
        headers_of(timelimit=[None, 3], shadow=None, eta=None, stamps={}, stamped_headers=None),
        headers_of(eta="9998-12-31T23:59:59", id="ä"),
    ],
)
def test_what_others_send_has_none(headers: dict[str, Any]) -> None:
    assert flaw_of(message({"headers": headers})) is None


def test_protocol_1() -> None:
    body = {"task": "known", "id": "1", "args": [1], "kwargs": {}}
    assert flaw_of(message({"headers": {}, "body": body})) is None


def test_a_flaw_is_told_without_what_the_message_says() -> None:
    for kind in KINDS.values():
        headers = kind.get("headers", {})
        if "raw_body" not in kind and not headers.get("compression"):
            assert SECRET not in str(flaw_of(message(kind)))


@pytest.mark.parametrize("text", ["", "\ud800", "a\0b", None, 5, b"x", "x" * 2000])
def test_what_is_no_name(text: Any) -> None:
    assert not has_text(text)
