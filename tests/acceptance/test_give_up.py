"""What is taken away at the hard deadline goes back where it came from, or the worker says so."""

from __future__ import annotations

import signal

import pytest
from celery import Celery
from kombu import Connection
from redis import Redis

from tests.conftest import RabbitVhost, RedisDB
from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker, wait_until

pytestmark = pytest.mark.slow


def start(broker: Broker, pool: str, write_url: str, hard: float = 2.0) -> Worker:
    env = {"RESULT_URL": broker.backend_url, "CONF_worker_send_task_events": "True"}
    # Much room after it: the machine may be slow.
    env["GRACE"] = str(hard + 60)
    env["CONF_graceful_hard_deadline"] = str(hard)
    env |= {"CONF_broker_read_url": repr(broker.url), "CONF_broker_write_url": repr(write_url)}
    return Worker("tests.apps.hard_times", pool=pool, env=env)


def send(app: Celery, worker: Worker) -> str:
    task_id = app.send_task("tests.apps.hard_times.early_swallowing").id
    worker.wait_line(">> .* started early_swallowing")
    return str(task_id)


@pytest.mark.parametrize(
    ("pool", "broker"),
    [("prefork", "redis"), ("threads", "rabbitmq"), ("solo", "rabbitmq")],
    indirect=["broker"],
)
def test_what_was_acknowledged_early_goes_back_where_it_came_from(
    pool: str, broker: Broker, app: Celery, redis_server, rabbit_server
) -> None:
    """The broker that is read is another one than that which is written to."""
    if broker.name == "redis":
        other = redis_server.url(redis_server.fresh_db())
    else:
        other = rabbit_server.url(rabbit_server.vhost())
    with start(broker, pool, other) as worker:
        worker.ready()
        task_id = send(app, worker)
        worker.term()
        assert worker.wait() == 0
        assert worker.count("Stopped: 0 finished, 0 interrupted, 1 given up") == 1
    assert broker.drain_queue(app, at_least=1) == [task_id]
    with Celery(broker=other) as written, written.connection_for_read() as connection:
        channel = connection.default_channel
        channel.queue_declare("celery", durable=True, auto_delete=False)
        assert channel.basic_get("celery") is None


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_where_they_stand_is_said_before(pool: str, redis_db: RedisDB) -> None:
    """The hard deadline is as far away as it takes a child to answer; SIGQUIT jumps to it."""
    conf = {"CONF_graceful_soft_deadline": "0.2", "CONF_graceful_hard_deadline": "2900"}
    env = {"BROKER_URL": redis_db.url, "RESULT_URL": redis_db.backend_url, "GRACE": "3000", **conf}
    with Worker("tests.apps.standing", pool=pool, env=env) as worker:
        worker.ready()
        app = Celery(broker=redis_db.url)
        for number in range(2):
            app.send_task("tests.apps.standing.stands", ["nobody's business"], task_id=f"{number}")
        worker.wait_line(">> .* stands", 2)
        worker.term()
        worker.wait_line(r' File ".*standing.py", line \d+, in stand_still$', 2)
        for number in range(2):
            text = rf"stands\[{number}\] will be given up at the hard deadline. It stands at:"
            worker.wait_line(text)
        assert worker.count("in stands$") == 2, "from the task's own frame on"
        worker.signal(signal.SIGQUIT)
        assert worker.wait() == 0
        assert worker.count("Stopped: 0 finished, 0 interrupted, 2 given up") == 1
        assert worker.count("It stands at:") == 2, "once"
        assert worker.count("nobody's business") == 0


@pytest.mark.parametrize("store", [True, False])
def test_what_no_queue_takes_is_kept(store: bool, rabbit_vhost: RabbitVhost, redis_db) -> None:
    """Its queue goes with its last consumer, which a stop cancels."""
    backend = redis_db.backend_url if store else "cache+memory://"
    broker = Broker("rabbitmq", rabbit_vhost.url, backend, redis_db.client)
    with broker.app() as app, start(broker, "prefork", broker.url, hard=TIMEOUT) as worker:
        worker.ready()
        task_id, active = send(app, worker), app.control.inspect().active
        # Else the message would go with its queue.
        wait_until(lambda: task_id in str(active()), "the worker has acknowledged it")
        worker.term()
        worker.wait_line("Stopping, asked for by")
        with app.connection_for_write() as connection:
            wait_until(lambda: not _has_consumers(connection), "it does not consume any more")
            connection.default_channel.queue_delete("celery")
        worker.signal(signal.SIGQUIT)  # the hard deadline, as soon as it is gone
        assert worker.wait() == 1
        place = f"in quarantine as {task_id}" if store else "in the queue graceful.quarantine"
        assert worker.count(f"ERROR.* .*early_swallowing.*is {place}: .*no queue takes it") == 1
        assert worker.count("Lost|Could not") == 0
        if store:
            with Redis.from_url(backend, decode_responses=True) as client:
                assert client.hkeys("graceful:quarantine") == [task_id]
            return
        with app.connection_for_read() as connection:
            kept = connection.default_channel.basic_get("graceful.quarantine", no_ack=True)
        assert kept.headers["id"] == task_id


def _has_consumers(connection: Connection) -> int:
    return connection.default_channel.queue_declare("celery", passive=True).consumer_count
