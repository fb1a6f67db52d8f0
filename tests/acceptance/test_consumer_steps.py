"""Consumer steps: what an app's worker reads besides tasks stops when they do."""

from __future__ import annotations

import json
import time

import pytest
from celery import Celery
from kombu import Queue

from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker, wait_until, wait_until_heard

#: Seconds. Much room after the hard deadline: the machine may be slow.
GRACE, HARD = 60.0, 3.0

QUEUE = Queue("mine", routing_key="mine")

#: More than what comes in one read from a socket.
MANY = 300


def start(broker: Broker, pool: str, hard: float = HARD) -> Worker:
    env = {**broker.env, "GRACE": str(GRACE), "CONF_graceful_hard_deadline": str(hard)}
    return Worker("tests.apps.consuming", pool=pool, env=env).ready()


def publish(app: Celery, *bodies: str) -> None:
    with app.connection_for_write() as connection, connection.Producer() as producer:
        for body in bodies:
            producer.publish(body, routing_key="mine", serializer="json", declare=[QUEUE])


def left(app: Celery, at_least: int) -> list[str]:
    """Waits for what RabbitMQ puts back when it has seen the end of a connection."""
    bodies: list[str] = []
    with app.connection_for_read() as connection:
        channel = connection.default_channel

        def drained() -> bool:
            while (message := channel.basic_get("mine", no_ack=True)) is not None:
                bodies.append(json.loads(message.body))
            return len(bodies) >= at_least

        wait_until(drained, f"{at_least} messages, there were {bodies}")
    return bodies


def test_nothing_is_read_in_quiet_and_what_is_held_goes_back_at_the_hard_deadline(
    broker: Broker, app: Celery
) -> None:
    with start(broker, "prefork") as worker:
        publish(app, "one", "hold 60")
        worker.wait_line(">> .* handled", count=2)
        wait_until_heard(app)
        app.control.broadcast("quiet")
        worker.wait_line("Quiet, asked for")
        for _ in range(2):  # the loop has gone round
            assert app.control.ping(timeout=TIMEOUT, limit=1)
        publish(app, "two", "three")
        worker.term()
        assert worker.wait() == 0
        assert worker.took < 30, "of 60 s of grace"
        assert worker.count(">> .* handled") == 2
        assert worker.count("Traceback|CRITICAL|Could not") == 0
    assert sorted(left(app, 3)) == ["hold 60", "three", "two"]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_stop_waits_for_what_is_held_and_sends_the_rest_back(
    pool: str, broker: Broker, app: Celery
) -> None:
    with start(broker, pool, hard=50.0) as worker:
        first, *rest = map(str, range(MANY))
        publish(app, "hold 1.5", first, "stop", *rest)
        worker.wait_line("Stopping, asked for by")
        worker.stopped_at = time.monotonic()
        assert worker.wait() == 0
        assert worker.took < 30, "of 60 s of grace"
        assert worker.count(">> .* answered") == 1
        handled = [found[1] for found in worker.find(r">> \S+ handled (\d+)")]
        assert len(handled) < MANY
    back = left(app, MANY - len(handled))
    assert sorted([*handled, *back]) == sorted(map(str, range(MANY)))
