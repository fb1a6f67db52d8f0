"""What a real Flower shows of tasks that go on after an interruption, and of dead workers."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, signature
from celery.events import EventReceiver

from tests.conftest import RedisDB
from tests.support.processes import GuardedProcess, free_port
from tests.support.workers import TIMEOUT, Worker, end_leases, wait_until

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
            with urllib.request.urlopen(self.url + path, timeout=TIMEOUT) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as exc:
            return str(exc.code)
        except OSError:
            return ""

    def state_of(self, task_id: str) -> str:
        answer = self.get(f"/api/task/info/{task_id}")
        return str(json.loads(answer)["state"]) if answer.startswith("{") else answer

    def counted(self, type: str, worker: str) -> bool:
        """Whether it has seen such an event."""
        pattern = f'flower_events_total{{[^}}]*type="{type}",worker="{worker}"}} [1-9]'
        return bool(re.search(pattern, self.get("/metrics")))

    def workers(self) -> set[str]:
        return set(re.findall(r'worker="([^"]+)"', self.get("/metrics")))


class Listener:
    """Hears what workers say of themselves, in a thread of its own."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.hear("worker-heartbeat")

    def hear(self, kind: str) -> dict[str, Any]:
        """The next event of that kind."""
        while True:
            event = self._heard.get(timeout=TIMEOUT)
            if event["type"] == kind:
                return event

    def _listen(self) -> None:
        with self._app.connection_for_read() as connection:
            handlers = {"*": self._take}
            self._receiver = EventReceiver(connection, handlers, "worker.#", app=self._app)
            self._receiver.capture(timeout=TIMEOUT, wakeup=False)

    def _take(self, event: dict[str, Any]) -> None:
        self._heard.put(event)
        self._receiver.should_stop = event["type"] == "worker-draining"


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
        "CONF_graceful_poison_limit": "2",
        "CONF_graceful_lease_ttl": "10.0",
        "CONF_graceful_heartbeat_interval": "0.5",
        "CONF_graceful_rescue_interval": "0.5",
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
        first.wait_line(f"started {task}")  # who is stopped before has not begun
        first.term()
        assert first.wait() == 0
        wait_until(lambda: flower.state_of(task) == "INTERRUPTED", "interrupted")
    with start(redis_db, "two@test").ready():  # it is killed at the end
        wait_until(lambda: flower.counted("task-resumed", "two@test"), "it runs again")
        wait_until(lambda: flower.state_of(task) == "STARTED", "and is shown so")
    end_leases(redis_db.client)

    with start(redis_db, "one@test").ready():
        wait_until(lambda: flower.counted("task-rescued", "one@test"), "found dead")
        wait_until(lambda: flower.counted("task-resumed", "one@test"), "it runs once more")
        wait_until(lambda: flower.state_of(task) == "STARTED", "and is shown so")
        app.control.revoke(task, terminate=True)
        wait_until(lambda: flower.state_of(task) == "REVOKED", "revoked")
        dying = signature(f"{APP}.dying", ("kill",), app=app).apply_async().id
        wait_until(lambda: flower.counted("task-quarantined", "one@test"), "in quarantine")
        wait_until(lambda: flower.state_of(dying) == "FAILURE", "and is shown as failed")

        listener = Listener(app)
        app.control.broadcast("graceful_quiet", destination=["one@test"])
        said = listener.hear("worker-draining")
        assert (said["phase"], said["reason"], said["seconds_left"]) == ("quiet", "shutdown", None)
        assert (said["type"], said["hostname"]) == ("worker-draining", "one@test")
        pages = ("/", "/tasks", "/worker/one@test", f"/task/{task}", f"/task/{dying}")
        for page in pages:
            assert "</html>" in flower.get(page), page
    assert flower.workers() == names
