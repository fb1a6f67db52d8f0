"""``expires`` bounds the first start: what has begun in time goes on, whatever stops its worker."""

from __future__ import annotations

import itertools
import signal
import time
from pathlib import Path

import pytest
from celery import Celery
from celery.result import AsyncResult

from tests.acceptance.test_poison import start, task
from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker, end_leases, wait_until

#: Seconds until a task expires.
EXPIRES = 2.0


def lease() -> dict[str, str]:
    interval = {"CONF_graceful_heartbeat_interval": "0.5"}
    return {"CONF_graceful_lease_ttl": "10", "GRACE": "60", **interval}


def begin(
    worker: Worker, app: Celery, name: str, *args: object, until: str = "started {}"
) -> tuple[AsyncResult, float]:
    """A task that has come so far in time, however slow the machine is; and when all expire."""
    sent: list[AsyncResult] = []
    for expires in itertools.accumulate(itertools.repeat(EXPIRES)):
        sent.append(task(app, name, *args).apply_async(expires=expires))
        expires_at = time.monotonic() + expires
        discarded = f"Discarding revoked task: .*{sent[-1].id}"
        while time.monotonic() < expires_at + 5 and not worker.count(discarded):
            for result in sent:  # one that was in time may say so late
                if worker.count(until.format(result.id)):
                    return result, expires_at
            worker.wait_news(0.1)
    raise AssertionError


@pytest.mark.parametrize(
    ("pool", "name", "number", "protocol"),
    [
        ("prefork", "waiting_for", signal.SIGTERM, 2),
        ("threads", "waiting_for", signal.SIGTERM, 2),
        ("prefork", "gated", signal.SIGQUIT, 2),
        ("threads", "waiting_for", signal.SIGKILL, 2),
        ("threads", "waiting_for", signal.SIGTERM, 1),
        ("threads", "waiting_for", signal.SIGKILL, 1),
    ],
)
def test_what_has_begun_goes_on(
    pool: str, name: str, number: int, protocol: int, broker: Broker, app: Celery, tmp_path: Path
) -> None:
    """Interrupted, given up, or killed; what had not begun expires."""
    app.conf.task_protocol = protocol
    gate = tmp_path / "go"
    if broker.name == "rabbitmq" and number == signal.SIGKILL:
        pytest.skip("the queue itself drops it")
    with start(broker, pool, CONF_worker_prefetch_multiplier="2", **lease()).ready() as worker:
        long, one_expires = begin(worker, app, name, str(gate))
        late, other_expires = begin(worker, app, "part", until=r"{}\] received")
        expired = max(one_expires, other_expires)
        wait_until(lambda: time.monotonic() > expired, "both have expired")
        if number == signal.SIGKILL:
            wait_until(lambda: broker.client.keys("graceful:begun:*"), "it is noted to have begun")
        worker.signal(number)
        worker.wait()
    end_leases(broker.client)
    gate.touch()
    with start(broker, pool, **lease()) as worker:
        assert long.get(timeout=TIMEOUT) == long.id
        assert worker.count(f"started {long.id}") == 1
        if broker.name == "redis":
            wait_until(lambda: late.state == "REVOKED", "it has expired")
        worker.term()
        assert worker.wait() == 0
    assert broker.drain_queue(app) == []
    assert not late.successful()


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_what_is_given_up_again_and_again_is_one_message(
    broker: Broker, app: Celery, tmp_path: Path
) -> None:
    """Its queue would have dropped the first; a copy has no expiry, and goes back by itself."""
    gate = tmp_path / "go"
    with start(broker, "prefork", **lease()).ready() as worker:
        long, expires_at = begin(worker, app, "gated", str(gate))
        wait_until(lambda: time.monotonic() > expires_at, "it has expired")
        worker.signal(signal.SIGQUIT)
        worker.wait()
    for _ in range(2):
        with start(broker, "prefork", **lease()) as worker:
            worker.wait_line(f"started {long.id}")
            worker.signal(signal.SIGQUIT)
            worker.wait()
    gate.touch()
    with start(broker, "prefork", **lease()) as worker:
        assert long.get(timeout=TIMEOUT) == long.id
        worker.term()
        assert worker.wait() == 0
        assert worker.count(f"started {long.id}") == 1
    assert broker.drain_queue(app) == []
