"""Remote control on gevent and eventlet, where a greenlet of its own waits for what is said."""

from __future__ import annotations

from contextlib import suppress

import pytest
from celery import Celery

from tests.support.broker import Broker
from tests.support.workers import Worker, wait_until_heard

#: Seconds. Far less than the mailbox waits for a message, in that app.
GRACE = 60.0

WRONG = "Traceback|CRITICAL|Could not|the consumer stops"


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_a_stop_does_not_wait_for_the_mailbox(pool: str, broker: Broker, app: Celery) -> None:
    env = {**broker.env, "GRACE": str(GRACE)}
    with Worker("tests.apps.patient", pool=pool, env=env).ready() as worker:
        wait_until_heard(app)
        worker.term()
        assert worker.wait() == 0
        assert worker.took < 30, "of 60 s of grace"
        assert worker.count(WRONG) == 0


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_remote_control_goes_on_when_the_connection_was_lost(
    pool: str, broker: Broker, app: Celery
) -> None:
    """Its greenlet ends with the consumer, and another one begins."""
    env = {**broker.env, "GRACE": str(GRACE)}
    with Worker("tests.apps.patient", pool=pool, env=env).ready() as worker:
        wait_until_heard(app)
        broker.cut()
        worker.wait_line("[Cc]onnection to broker lost")
        with suppress(app.connection_for_write().connection_errors):  # ours was cut, too
            app.control.ping(timeout=0.1)
        wait_until_heard(app)
        worker.term()
        assert worker.wait() == 0
        assert worker.count("CRITICAL|the consumer stops") == 0
