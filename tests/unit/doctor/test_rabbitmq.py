"""Findings of the doctor that are about RabbitMQ, which need not answer for them."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from kombu import Queue

from celery_graceful import GracefulTask
from tests.support.doctor import add_task, graceful_app
from tests.support.doctor import look as look_at


def app_with(arguments: dict[str, Any] | None = None, **options: Any) -> Celery:
    queues = [Queue("jobs", queue_arguments=arguments or {})]
    app = graceful_app("amqp://127.0.0.1:1//", task_queues=queues)
    return add_task(app, base=GracefulTask, **options)


def quorum(limit: int) -> dict[str, Any]:
    return {"x-queue-type": "quorum", "x-delivery-limit": limit}


FOUND = [
    ("CG301", app_with(quorum(10)), 10),
    ("CG301", app_with(quorum(5), max_interruptions=5), 5),
    ("CG302", app_with(time_limit=1801), "1800 s, if nobody has set it"),
    ("CG302", app_with({"x-consumer-timeout": 60_000}, time_limit=61), "60 s"),
]
NOT_FOUND = [
    ("CG301", app_with(quorum(11))),
    ("CG301", app_with(quorum(-1))),
    ("CG301", app_with(quorum(5), max_interruptions=4)),
    ("CG301", app_with({"x-delivery-limit": 5})),
    ("CG301", add_task(graceful_app())),
    ("CG302", app_with(time_limit=1800)),
    ("CG302", app_with({"x-consumer-timeout": 7200_000}, time_limit=1801)),
    ("CG302", app_with()),
]


def look(app: Celery, code: str) -> list[Any]:
    findings, _ = look_at(app, code)
    return [one.value for one in findings]


@pytest.mark.parametrize(("code", "app", "value"), FOUND)
def test_is_found(code: str, app: Celery, value: Any) -> None:
    assert look(app, code) == [value]


@pytest.mark.parametrize(("code", "app"), NOT_FOUND)
def test_is_not_found(code: str, app: Celery) -> None:
    assert look(app, code) == []
