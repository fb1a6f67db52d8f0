"""``expires`` bounds the first start: what has begun in time goes on, whatever stops its worker."""

from __future__ import annotations

import itertools
import signal
import time

import pytest
from celery import Celery
from celery.result import AsyncResult

from tests.acceptance.test_poison import start, task
from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker, end_leases, wait_until

#: Seconds: of the task, and until it expires.
LONG, EXPIRES = 8.0, 2.0


def lease() -> dict[str, str]:
    return {"CONF_graceful_lease_ttl": "5", "CONF_graceful_heartbeat_interval": "0.5"}


def begin(worker: Worker, app: Celery, name: str) -> tuple[AsyncResult, float]:
    """A task that has begun in time, however slow the machine is; and when it expires."""
    for expires in itertools.accumulate(itertools.repeat(EXPIRES)):
        result = task(app, name, LONG).apply_async(expires=expires)
        expires_at = time.monotonic() + expires
        started, discarded = f"started {result.id}", f"Discarding revoked task: .*{result.id}"
        if "started" in worker.wait_line(f"{started}|{discarded}"):
            return result, expires_at
    raise AssertionError


@pytest.mark.parametrize(
    ("pool", "name", "number", "protocol"),
    [
        ("prefork", "waiting", signal.SIGTERM, 2),
        ("threads", "waiting", signal.SIGTERM, 2),
        ("prefork", "stubborn", signal.SIGQUIT, 2),
        ("threads", "waiting", signal.SIGKILL, 2),
        ("threads", "waiting", signal.SIGTERM, 1),
        ("threads", "waiting", signal.SIGKILL, 1),
    ],
)
def test_what_has_begun_goes_on(
    pool: str, name: str, number: int, protocol: int, broker: Broker, app: Celery
) -> None:
    """Interrupted, given up, or killed; what had not begun expires."""
    app.conf.task_protocol = protocol
    if broker.name == "rabbitmq" and number == signal.SIGKILL:
        pytest.skip("the queue itself drops it")
    with start(broker, pool, CONF_worker_prefetch_multiplier="2", **lease()).ready() as worker:
        long, expires_at = begin(worker, app, name)
        late = task(app, "part").apply_async(expires=EXPIRES)
        expires_at = max(expires_at, time.monotonic() + EXPIRES)
        worker.wait_line(rf"{late.id}\] received")
        wait_until(lambda: time.monotonic() > expires_at, "both have expired")
        worker.signal(number)
        worker.wait()
    end_leases(broker.client)
    with start(broker, pool, **lease()) as worker:
        assert long.get(timeout=TIMEOUT) == long.id
        assert worker.count(f"started {long.id}") == 1
        if broker.name == "redis":
            wait_until(lambda: late.state == "REVOKED", "it has expired")
        worker.term()
        assert worker.wait() == 0
    assert broker.drain_queue(app) == []
    assert not late.successful()
