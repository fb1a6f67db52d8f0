"""An app whose results are where its broker is not, and the server of which goes away."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery

from tests.support.operators import make_app
from tests.support.workers import Worker, wait_until

__all__ = ["KEPT", "Site"]

#: Celery tries for 19 s by default.
NO_RETRIES = {"CONF_result_backend_transport_options": "{'retry_policy': {'max_retries': 0}}"}

KEPT = "has ended .*, and that cannot be stored: its message is held"


@dataclass
class Site:
    """An app, its broker, and the Redis where its results are."""

    app: Celery
    results: Any
    gate: Path
    env: dict[str, str]
    #: While Redis is away none is forgotten: Celery would ask it.
    sent: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, broker: str, results: Any, gate: Path) -> Site:
        """One whose broker has this URL."""
        app = make_app(broker, results.url(0))
        env = {"BROKER_URL": broker, "RESULT_URL": results.url(0), "GRACE": "60"}
        return cls(app, results, gate, env)

    def worker(self, pool: str, **env: str) -> Worker:
        # One at a time: nothing that waits is handed over while what has ended is held.
        concurrency = 1 if pool == "solo" else 8
        env = {**self.env, **NO_RETRIES, **env}
        return Worker("tests.apps.untold", pool=pool, concurrency=concurrency, env=env)

    def send(self, name: str) -> None:
        self.sent.append(self.app.send_task(name, [str(self.gate)], task_id=name))

    def state(self, task_id: str) -> str:
        return str(self.app.backend.get_task_meta(task_id, cache=False)["status"])

    def all_end(self, **states: str) -> None:
        wait_until(lambda: {each: self.state(each) for each in states} == states, f"{states}", 0.1)
