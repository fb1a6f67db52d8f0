"""RabbitMQ takes back what runs, and what has ended: a worker that had it knows it again."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu.asynchronous import Hub

from celery_graceful.worker.loop import Loop
from tests.acceptance.test_poison import start, task
from tests.conftest import RabbitVhost, RedisDB, require
from tests.servers import RabbitServer
from tests.support.broker import Broker
from tests.support.distance import door
from tests.support.workers import TIMEOUT, Worker, end_leases, wait_until
from tests.unit.worker.test_loop import LoopsConsumer

#: Seconds between two heartbeats, after twice which a connection is closed.
HEARTBEAT = 1


@pytest.fixture
def broker(rabbit_vhost: RabbitVhost, redis_db: RedisDB) -> Broker:
    return Broker("rabbitmq", rabbit_vhost.url, redis_db.backend_url, redis_db.client)


def deaf(broker: Broker, **env: str) -> Worker:
    """Answers no heartbeat while it runs a task."""
    env = {"CONF_broker_heartbeat": str(HEARTBEAT), **env}
    return start(broker, "solo", **env).ready()


def ended_once(app: Celery, broker: Broker, task_id: str, *workers: Worker) -> None:
    """It has a result, nobody runs it again, and its message is gone."""
    assert app.AsyncResult(task_id).get(timeout=TIMEOUT)
    assert sum(worker.count(f"started {task_id}") for worker in workers) == 1
    for worker in workers:
        if worker.process.poll() is None:
            worker.term()
            worker.wait()
    assert broker.drain_queue(app) == []


def taken_back(rabbit_vhost: RabbitVhost) -> None:
    """Wait until the broker has had enough of the one that is deaf."""
    wait_until(lambda: rabbit_vhost.queue_length("celery") == 1, "it has taken back what runs")


def test_longer_than_the_heartbeat(
    broker: Broker, app: Celery, rabbit_vhost: RabbitVhost, tmp_path: Path
) -> None:
    """Plain Celery runs it again, and again."""
    gate = tmp_path / "gate"
    with deaf(broker) as worker:
        long = task(app, "gated", str(gate)).apply_async()
        worker.wait_line(f"started {long.id}")
        taken_back(rabbit_vhost)
        gate.touch()
        worker.wait_line(f"{long.id}.* has ended here already: acknowledged")
        after = task(app, "part").apply_async()
        assert after.get(timeout=TIMEOUT) == 1
        ended_once(app, broker, long.id, worker)


def test_longer_than_the_heartbeat_without_a_store(
    rabbit_vhost: RabbitVhost, tmp_path: Path
) -> None:
    broker = Broker("rabbitmq", rabbit_vhost.url, "rpc://", None)
    gate = tmp_path / "gate"
    with broker.app() as app, deaf(broker) as worker:
        long = task(app, "gated", str(gate)).apply_async(ignore_result=True)
        worker.wait_line(f"started {long.id}")
        taken_back(rabbit_vhost)
        gate.touch()
        worker.wait_line(f"{long.id}.* has ended here already: acknowledged")
        assert worker.count(f"started {long.id}") == 1


@pytest.mark.parametrize("ends", ["lives", "dies"])
def test_another_worker_gets_it(ends: str, broker: Broker, app: Celery, tmp_path: Path) -> None:
    """It asks who runs it: while that one lives, it waits."""
    # Of who lives; of the dead it is ended by hand.
    lease = {"CONF_graceful_lease_ttl": "60", "CONF_graceful_heartbeat_interval": "0.5"}
    with deaf(broker, **lease) as one:
        gate = tmp_path / "gate"
        long = task(app, "gated", str(gate)).apply_async()
        one.wait_line(f"started {long.id}")
        wait_until(lambda: broker_store(broker).exists(f"graceful:started:{long.id}"))
        with start(broker, "threads", **lease).ready() as other:
            other.wait_line(rf"{long.id}\] received")
            if ends == "dies":
                one.signal(signal.SIGKILL)
                one.wait()
                end_leases(broker_store(broker), one)
                other.wait_line(f"started {long.id}")
                gate.touch()
                assert app.AsyncResult(long.id).get(timeout=TIMEOUT)
            else:
                gate.touch()
                other.wait_line(f"{long.id}.* has ended with another worker: acknowledged")
                ended_once(app, broker, long.id, one, other)


def test_a_lost_connection_of_events_is_not_made_anew_by_its_heartbeats(
    rabbit_vhost: RabbitVhost,
) -> None:
    """The channel of who sends events would still be the old one, and its loop would never end."""
    app = Celery("events", broker=rabbit_vhost.url, set_as_current=False)
    with app.connection_for_write() as connection:
        consumer = LoopsConsumer([])
        events = consumer.event_dispatcher = app.events.Dispatcher(connection, hostname="w")
        Loop(None, green=False).attach(consumer)
        events.send("worker-online")
        connection.heartbeat_check(2)
        connection.connection.transport.sock.shutdown(socket.SHUT_RDWR)
        with pytest.raises(ConnectionError, match=r"pipe|reset"):
            connection.connection.send_heartbeat()
        with pytest.raises(ConnectionResetError, match="events is lost"):
            connection.heartbeat_check(2)
        events.send("worker-heartbeat", retry=True)
        assert connection.connected
        connection.heartbeat_check(2)


@pytest.mark.parametrize("hub", [True, False])
@pytest.mark.parametrize("kind", ["rabbit", "redis"])
def test_a_broker_that_is_away_does_not_hold_up_who_sends_events(
    kind: str, hub: bool, request: pytest.FixtureRequest
) -> None:
    """The loop that sends them ends as it does by a lost connection, and they are kept."""
    server, left = request.getfixturevalue(f"{kind}_server"), list[Any]()
    with door(server.port) as way:
        url = server.url().replace(str(server.port), str(way.port))
        app = Celery("events", broker=url, set_as_current=False)
        with app.connection_for_write() as connection, app.connection_for_read() as read:
            consumer = LoopsConsumer(left)
            consumer.hub, consumer.connection = Hub() if hub else None, read
            events = consumer.event_dispatcher = app.events.Dispatcher(connection, hostname="w")
            loop = Loop(None, green=False)
            loop.attach(consumer)
            events.send("worker-online", retry=True)

            def kept() -> int:
                in_time(events.send, "worker-heartbeat", retry=True)
                return len(events._outbound_buffer)

            way.shut()
            wait_until(kept, "its socket knows")
            assert kept() == 2
            way.open()
            assert kept() == 3, "its channel is gone for good"
            end = left[-1] if hub else partial(read.drain_events, timeout=TIMEOUT)
            with pytest.raises(ConnectionResetError, match="events is lost"):
                end()
            loop.end(TIMEOUT)


def in_time(call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Else it waits for a broker."""
    thread = threading.Thread(target=call, args=args, kwargs=kwargs, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def broker_store(broker: Broker) -> Any:
    import redis

    return redis.Redis.from_url(broker.backend_url, decode_responses=True)


@pytest.fixture(scope="module")
def impatient_server() -> Iterator[RabbitServer]:
    require(RabbitServer)
    # Who answers within half a second has time to do so, on a busy machine as well.
    options = {"consumer_timeout": 12_000, "channel_tick_interval": 1000}
    with RabbitServer(options=options) as server:
        yield server


@pytest.mark.rabbitmq
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_the_brokers_own_limit(
    pool: str, redis_db: RedisDB, impatient_server: RabbitServer, tmp_path: Path
) -> None:
    """RabbitMQ's ``consumer_timeout`` ends the worker, as a stop does: what runs goes on."""
    url = impatient_server.url(impatient_server.vhost())
    broker = Broker("rabbitmq", url, redis_db.backend_url, redis_db.client)
    gate = tmp_path / "gate"
    with (
        broker.app() as app,
        start(broker, pool, HOLD="0.5", GRACE="120").ready() as one,
    ):
        long = task(app, "gated", str(gate)).apply_async()
        one.wait_line(f"started {long.id}")
        with start(broker, pool, HOLD="0.5").ready() as other:
            one.wait_line("Stopping, asked for by an error that Celery does not recover from")
            other.wait_line(rf"{long.id}\] received", 2)
            gate.touch()
            assert one.wait() != 0
            assert one.count("Stopped: 1 finished")
            other.wait_line(f"{long.id}.* has ended with another worker: acknowledged")
            ended_once(app, broker, long.id, other, one)
