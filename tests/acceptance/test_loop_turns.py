"""What threads leave to the loop is done at once: it is not waited for until a timer is due."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from celery import Celery
from celery.result import ResultSet

from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker

#: Acknowledged one by one, each of which would wait for a tenth of a second, or for a whole one.
TASKS = 1000


@pytest.mark.rabbitmq
@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_no_confirm_is_read_by_the_loop(pool: str, make_broker: Callable[[str], Broker]) -> None:
    """Since 5.7 it reads the connection of events: who had sent one waited for ever."""
    broker = make_broker("rabbitmq")
    env = {**broker.env, "EFFECTS": broker.backend_url, "GRACE": "120"}
    env["CONF_broker_transport_options"] = "{'confirm_publish': True}"
    with (
        broker.app() as app,
        Worker("tests.apps.members", pool=pool, env=env, args=["-E"]) as worker,
    ):
        worker.ready()
        for _ in range(5):
            sent = [app.send_task("late", ["succeed"]) for _ in range(TASKS // 10)]
            assert ResultSet(sent, app=app).join(timeout=TIMEOUT) == ["done"] * len(sent)
        worker.term()
        assert worker.wait() == 0
        assert worker.took < 60, "of 120 s"


@pytest.mark.parametrize("pool", ["threads", "gevent", "prefork", "solo"])
def test_no_task_waits_for_a_timer(pool: str, broker: Broker, app: Celery) -> None:
    """Where all that may be fetched is fetched, the next one comes after an acknowledgement."""
    env = {**broker.env, "EFFECTS": broker.backend_url, "CONF_worker_prefetch_multiplier": "1"}
    with Worker("tests.apps.members", pool=pool, env=env) as worker:
        worker.ready()
        sent = [app.send_task("late", ["succeed"]) for _ in range(TASKS)]
        assert ResultSet(sent, app=app).join(timeout=5 * TIMEOUT) == ["done"] * TASKS
        worker.term()
        worker.wait()
