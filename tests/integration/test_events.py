"""Events that are told before something happens, which must not wait for them."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from celery_graceful.membership import events
from celery_graceful.worker import events_connection
from tests.conftest import RabbitVhost, RedisDB
from tests.support.monitor import monitored
from tests.support.workers import TIMEOUT, wait_until

NOT_SENT = "Events were not sent"
SOME = [("task-rescued", {"uuid": str(number)}) for number in range(3)]


def worker_of(broker: str, groups: Sequence[str] = ()) -> Any:
    """Of a worker, as much as is asked."""
    dispatcher = SimpleNamespace(enabled=True, groups={*groups})
    app = Celery(broker=broker, set_as_current=False)
    consumer = SimpleNamespace(event_dispatcher=dispatcher)
    return SimpleNamespace(app=app, hostname="w1@test", consumer=consumer)


def test_a_broker_that_hangs_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "TIMEOUT", TIMEOUT)
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        worker = worker_of(f"redis://127.0.0.1:{hangs.getsockname()[1]}")
        with events.soon(worker, "task") as tell:
            tell(SOME)
        assert NOT_SENT not in caplog.text, "nobody has waited for it"
        hangs.accept()[0].close()
        wait_until(lambda: NOT_SENT in caplog.text, "given up")


@pytest.mark.parametrize(
    ("groups", "messages"), [((), 1), (("worker", "task"), 1), (("worker",), 0)]
)
def test_they_are_one_message_where_they_are_on(
    redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch, groups: Sequence[str], messages: int
) -> None:
    """By default a worker sends events of its own, and none of tasks."""
    monkeypatch.setattr(events, "AHEAD", TIMEOUT)
    with monitored(redis_db.client) as commands:
        with events.soon(worker_of(redis_db.url, groups), "task") as tell:
            tell(SOME)
        with events.soon(worker_of(redis_db.url, groups), "task"):
            pass  # there was nothing to tell
    assert sum(one.startswith("PUBLISH") for one in commands) == messages


def test_no_event_waits_for_a_confirm(rabbit_vhost: RabbitVhost) -> None:
    """Else a broker that is full, or hangs, would keep the loop of a worker that stops."""
    with Celery("confirms", broker=rabbit_vhost.url, set_as_current=False) as app:
        app.conf.broker_transport_options = {"confirm_publish": True}
        dispatcher = app.events.Dispatcher(app.connection_for_write(), hostname="w")
        dispatcher.send("worker-online")  # as Celery does before its loop
        confirmed = dispatcher.producer.channel
        assert confirmed._confirm_selected
        events_connection.wait_for_no_confirms(SimpleNamespace(event_dispatcher=dispatcher))
        dispatcher.send("worker-heartbeat")
        assert dispatcher.producer.channel is not confirmed
        assert not dispatcher.producer.channel._confirm_selected
        connection = dispatcher.connection
        connection.collect()
        connection.ensure_connection()
        assert not connection.connection.confirm_publish, "nor when it is made anew"
        connection.close()
