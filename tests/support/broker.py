"""What the acceptance tests share: a broker to ask, and the command line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery import Celery

from tests.apps import quorum_queues
from tests.support.command import CELERY, PATIENT
from tests.support.workers import ROOT, TIMEOUT, wait_until

__all__ = ["Broker", "graceful_command"]


@dataclass
class Broker:
    """One broker and one result backend for one test."""

    name: str
    url: str
    backend_url: str
    client: Any

    @property
    def env(self) -> dict[str, str]:
        """Where the apps in `tests/apps` find it."""
        return {"BROKER_URL": self.url, "RESULT_URL": self.backend_url}

    def app(self) -> Celery:
        app = Celery("lifecycle", broker=self.url, backend=self.backend_url)
        app.conf.update(task_default_queue="celery", broker_connection_timeout=TIMEOUT)
        if self.name == "quorum":
            app.conf.task_queues = quorum_queues()
        return app

    def drain_queue(self, app: Celery, at_least: int = 0) -> list[str]:
        """The ids of the tasks in the queue, in order of delivery; takes them out.

        Waits until `at_least` so many came: what a worker held that is gone, RabbitMQ puts back
        when it has seen the end of its connection, which may be after we saw that of its process.
        """
        ids: list[str] = []
        with app.connection_for_read() as connection:
            channel = connection.default_channel

            def drained() -> bool:
                while (message := channel.basic_get("celery", no_ack=True)) is not None:
                    ids.append(message.headers["id"])
                return len(ids) >= at_least

            wait_until(drained, f"{at_least} messages in the queue, which had {ids}")
        return ids

    def cut(self) -> None:
        """Close all connections to Redis but ours, as an operator does."""
        for kind in ("pubsub", "normal"):
            self.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    def held(self) -> int:
        """Messages that a worker that is gone still holds."""
        if self.name != "redis":
            return 0
        keys = ["unacked", *self.client.keys("graceful:claims:*")]
        return sum(int(self.client.hlen(key)) for key in keys)


def graceful_command(
    app: str, *args: str, env: Mapping[str, str] | None = None, status: int = 0
) -> str:
    """What `celery -A app graceful ...` writes; it has to exit with `status`.

    Where that does not say that a server is away, the command has patience with those.
    """
    patience = {} if status == 3 else {PATIENT: "1"}
    ended = subprocess.run(
        [*CELERY, "-A", app, "graceful", *args],
        env={**os.environ, **patience, **(env or {})},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=5 * TIMEOUT,
    )
    assert ended.returncode == status, ended.stderr + ended.stdout
    return ended.stdout + ended.stderr
