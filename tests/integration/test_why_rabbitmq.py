"""``why`` of a task on RabbitMQ, which does not say what is in its queues."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery
from kombu.transport.native_delayed_delivery import (
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
)

from celery_graceful import Graceful
from celery_graceful.operations import Operations
from celery_graceful.operations.records import Why
from celery_graceful.operations.stores import stores_of
from celery_graceful.operations.why import Search
from tests.conftest import RabbitVhost, RedisDB
from tests.support.workers import wait_until
from tests.unit.cli.test_tables import worker

pytestmark = pytest.mark.usefixtures("patient")

SAYS_NOTHING = "the broker does not say what is in its queues"
DELAYED = "it may wait for its time: 1 do, in queues celery_delayed_N"


@pytest.fixture
def app(rabbit_vhost: RabbitVhost, redis_db: RedisDB) -> Iterator[Celery]:
    app = Celery("why", broker=rabbit_vhost.url, backend=redis_db.backend_url, set_as_current=False)
    app.conf.update(
        graceful_store=redis_db.url,
        task_default_queue_type="quorum",
        task_default_exchange="tasks",
        task_default_exchange_type="topic",
        task_routes={"web.*": {"queue": "routed"}},
        broker_transport_options={"confirm_publish": True},
    )
    Graceful(app)

    @app.task(name="one", shared=False)
    def one() -> None: ...

    @app.task(name="elsewhere", queue="own", shared=False)
    def elsewhere() -> None: ...

    with app.connection_for_write() as connection:
        declare_native_delayed_delivery_exchanges_and_queues(connection, "quorum")
        for queue in app.amqp.queues.values():
            queue.bind(connection.default_channel).declare()
            bind_queue_to_native_delayed_delivery_exchange(connection, queue)
    yield app
    app.close()


def why(app: Celery, task_id: str) -> Why:
    return Operations(app, wait=0.1).why(task_id)


def test_it_waits_for_its_time(app: Celery) -> None:
    """Nobody knows which of those in the queue it is."""
    assert why(app, "1").sentences == ("no worker holds it, it has no result",)
    app.tasks["one"].apply_async(task_id="1", countdown=600)
    wait_until(lambda: DELAYED in why(app, "1").sentences, "it is in a queue")
    found = why(app, "1")
    assert (found.state, found.stuck) == ("unknown", True)
    assert found.sentences == ("no worker holds it, it has no result", DELAYED, SAYS_NOTHING)


def test_it_waits_for_its_retry(app: Celery) -> None:
    app.backend.store_result("1", ConnectionError("once"), "RETRY")
    found = why(app, "1")
    assert (found.state, found.stuck) == ("unknown", True)
    assert found.sentences == ("no worker holds it, its result is RETRY",), "it is in no queue"
    app.tasks["one"].apply_async(task_id="1", countdown=600)
    wait_until(lambda: DELAYED in why(app, "1").sentences, "it is in a queue")
    found = why(app, "1")
    assert (found.state, found.stuck) == ("queued", False)
    said = "it waits for its next try, as its result says: RETRY"
    assert found.sentences == (said, DELAYED, SAYS_NOTHING)


@pytest.mark.parametrize("queue", ["celery", "own", "routed", "consumed"])
def test_it_may_be_in_any_queue_that_is_known(
    queue: str, app: Celery, rabbit_vhost: RabbitVhost
) -> None:
    """Those of the app, of its tasks and routes, and those that living workers consume."""
    with app.connection_for_write() as connection:
        if queue == "celery":
            app.tasks["one"].apply_async()
        else:
            connection.SimpleQueue(queue).put("something")
    wait_until(lambda: rabbit_vhost.queue_length(queue), "it is there")
    lives = worker("w1@a", queues=("consumed",))
    found = Search(app, stores_of(app), [lives], 0.1, "1").why()
    in_queue = f"it may be in {queue}: 1 wait there, and nobody consumes it"
    assert found.sentences == ("no worker holds it, it has no result", in_queue, SAYS_NOTHING)


def test_what_a_result_says_besides(app: Celery) -> None:
    app.backend.store_result("1", {"percent": 5}, "PROGRESS")
    assert why(app, "1").sentences == ("no worker holds it, its result is PROGRESS",)
