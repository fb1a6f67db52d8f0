"""Messages that no task can be made of: kept, and nobody dies of them."""

from __future__ import annotations

import json
import struct
from typing import Any

import amqp
import pytest
from celery import Celery
from hypothesis import HealthCheck, Phase, given, settings

from celery_graceful import Graceful
from celery_graceful.poison import quarantine
from tests.acceptance.test_poison import quarantined
from tests.support.broker import Broker, graceful_command
from tests.support.unusable import KINDS, SECRET, put, wild
from tests.support.workers import TIMEOUT, Worker, wait_until

APP = "tests.apps.unusable"

#: Of virtual transports only.
OF_REDIS = {"no base64"}

MESSAGES = 1000


def start(broker: Broker, pool: str, **env: str) -> Worker:
    env = {**broker.env, "GRACE": "60", **env}
    return Worker(APP, pool=pool, env=env)


@pytest.fixture
def app(broker: Broker, app: Celery) -> Celery:
    Graceful(app)  # rings when it sends
    app.conf.graceful_store = broker.url if broker.name == "redis" else broker.backend_url
    return app


def kinds_of(broker: Broker) -> dict[str, dict[str, Any]]:
    return {
        name: kind for name, kind in KINDS.items() if broker.name == "redis" or name not in OF_REDIS
    }


@pytest.mark.parametrize(
    ("broker", "pool"),
    [("redis", "prefork"), ("redis", "gevent"), ("rabbitmq", "threads"), ("rabbitmq", "solo")],
    indirect=["broker"],
)
def test_each_kind_goes_to_quarantine(pool: str, broker: Broker, app: Celery) -> None:
    """With the reason; what it says is not in the log, and its neighbours run."""
    kinds = kinds_of(broker)
    with start(broker, pool) as worker:
        worker.ready()
        for number, kind in enumerate(kinds.values(), 1):
            put(app, kind)
            if number % 5 == 0:
                assert app.send_task("neighbour").get(timeout=TIMEOUT)
        wait_until(lambda: len(quarantined(app)) == len(kinds), "all kept")
        worker.wait_line("It is in quarantine as", len(kinds))
        assert app.send_task("neighbour").get(timeout=TIMEOUT)
        worker.term()
        assert worker.wait() == 0
        assert worker.count("cannot be used") == len(kinds)
        assert SECRET not in worker.output
        assert not worker.count("Traceback|Unrecoverable|no known flaw")
        assert worker.count(">> .* rejected") == len(kinds)
    assert broker.held() == 0
    if pool in ("solo", "prefork"):
        check_the_command_line(broker, app, len(kinds))


def check_the_command_line(broker: Broker, app: Celery, count: int) -> None:
    """They are listed and shown, and go back to their queue as they were."""
    urls = broker.env
    listed = graceful_command(APP, "quarantine", "list", env=urls, status=1)
    *rows, _, mend = listed.splitlines()
    assert len(rows) == count
    assert "quarantine retry ID" in mend
    telling = next(name for name, kept in quarantined(app).items() if SECRET in str(kept.message))
    assert SECRET in graceful_command(APP, "quarantine", "show", telling, env=urls)
    before = sorted(json.dumps(kept.message.get("raw")) for kept in quarantined(app).values())
    retried = graceful_command(APP, "quarantine", "retry", "--all", env=urls)
    assert retried.count("sent again") == count
    if broker.name == "redis":
        back = broker.client.lrange("celery", 0, -1)
        assert sorted(map(json.dumps, back)) == before


def test_whatever_comes(broker: Broker, app: Celery) -> None:
    """Anything anywhere in the envelope: the worker lives, and lets go of each message."""
    sent: list[dict[str, Any]] = []

    @settings(
        max_examples=MESSAGES // 2,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(wild(amqp=broker.name != "redis"))
    def make(kind: dict[str, Any]) -> None:
        sent.append(kind)

    make()
    with start(broker, "solo", CONF_graceful_unknown_task_patience="3600") as worker:
        worker.ready()
        for number, kind in enumerate(sent):
            try:
                put(app, kind)
            except (amqp.exceptions.FrameSyntaxError, struct.error):
                continue  # AMQP has no way to say it
            if number % 100 == 0:
                assert app.send_task("neighbour").get(timeout=TIMEOUT), "its neighbours run"
        assert app.send_task("neighbour").get(timeout=TIMEOUT)
        worker.term()
        assert worker.wait() == 0
        assert not worker.count("Unrecoverable|has begun|stays where it is|does not work")
    assert broker.held() == 0
    kept = list(quarantined(app).values())
    assert len(kept) > MESSAGES // 10
    assert all(one.why and one.deaths == 0 for one in kept)
    assert {type(one) for one in kept} == {quarantine.Kept}
