"""What a worker says of queues that RabbitMQ deletes when it stops."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from kombu import Connection, Exchange, Queue
from kombu.common import Broadcast

from celery_graceful.worker.queues_that_end import say_what_ends

QUEUES = [
    Queue("stays"),
    Queue("one's own", auto_delete=True),
    Queue("only ours", exclusive=True),
    Queue("news", Exchange("news", type="fanout"), auto_delete=True),
    Broadcast("told"),
]


@pytest.mark.parametrize(
    ("url", "connected_again", "said"),
    [
        ("amqp://", 0, ["Queue one's own is auto_delete", "Queue only ours is exclusive"]),
        ("amqp://", 1, []),
        ("redis://", 0, []),
    ],
)
def test_those_that_end_are_named(
    url: str, connected_again: int, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    consumer = SimpleNamespace(
        connection=Connection(url),
        restart_count=connected_again,
        task_consumer=SimpleNamespace(queues=QUEUES),
    )
    say_what_ends(consumer)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == said
