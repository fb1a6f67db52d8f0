"""What a real Flower shows of tasks that go on after an interruption, and of dead workers."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery, signature

from tests.conftest import RedisDB
from tests.support.processes import GuardedProcess, free_port
from tests.support.workers import TIMEOUT, Worker, wait_until

APP = "tests.apps.poison"


class Flower:
    """A Flower without the app's code, as its image runs."""

    def __init__(self, broker: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        args = [f"--broker={broker}", "flower", f"--port={port}", "--address=127.0.0.1"]
        env = {**os.environ, "FLOWER_UNAUTHENTICATED_API": "true", "PYTHONPATH": ""}
        argv = [sys.executable, "-m", "celery", *args]
        self.process = GuardedProcess(argv, env, Path(tempfile.mkdtemp()))

    def get(self, path: str) -> str:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as exc:
            return str(exc.code)
        except OSError:
            return ""

    def state_of(self, task_id: str) -> str:
        answer = self.get(f"/api/task/info/{task_id}")
        return str(json.loads(answer)["state"]) if answer.startswith("{") else answer

    def workers(self) -> set[str]:
        return set(re.findall(r'worker="([^"]+)"', self.get("/metrics")))


@pytest.fixture
def flower(redis_db: RedisDB) -> Iterator[Flower]:
    flower = Flower(redis_db.url)
    try:
        wait_until(lambda: flower.get("/healthcheck") == "OK", "Flower answers", 0.05)
        yield flower
    finally:
        flower.process.end(signal.SIGKILL, TIMEOUT)


def start(redis_db: RedisDB, name: str) -> Worker:
    env = {
        "BROKER_URL": redis_db.url,
        "RESULT_URL": redis_db.backend_url,
        "GRACE": "10",
        "CONF_worker_send_task_events": "True",
        "CONF_worker_lost_wait": "0.1",
        "CONF_graceful_poison_limit": "1",
    }
    args = ["-E"]
    return Worker(APP, concurrency=1, env=env, hostname=name, args=args, alone=False)


def test_what_it_shows(redis_db: RedisDB, flower: Flower) -> None:
    app = Celery(broker=redis_db.url, set_as_current=False)
    names = {"one@test", "two@test"}
    # Flower listens when it has seen a heartbeat of the first worker.
    with start(redis_db, "one@test").ready() as first:
        wait_until(lambda: "one@test" in flower.workers(), "the first worker")
        task = signature(f"{APP}.waiting", (60,), app=app).apply_async().id
        wait_until(lambda: flower.state_of(task) == "STARTED", "it runs")
        first.term()
        assert first.wait() == 0
        wait_until(lambda: flower.state_of(task) == "INTERRUPTED", "interrupted")
    with start(redis_db, "two@test").ready() as second:
        wait_until(lambda: flower.state_of(task) == "STARTED", "it runs again")
        second.term()
        assert second.wait() == 0
        wait_until(lambda: flower.state_of(task) == "INTERRUPTED", "interrupted again")
        app.control.purge()

    with start(redis_db, "one@test").ready():
        dying = signature(f"{APP}.dying", ("kill",), app=app).apply_async().id
        wait_until(lambda: flower.state_of(dying) == "FAILURE", "in quarantine")
    assert flower.workers() == names
