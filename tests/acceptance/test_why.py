"""``why`` of a task in the states that take a worker to get into, and what it has been through."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from celery_graceful.operations import Operations, why
from celery_graceful.operations.asking import ask
from tests.conftest import RedisDB
from tests.support.operators import APP, command, document, make_app, send, start
from tests.support.workers import TIMEOUT, wait_until, wait_until_heard

#: No machine is so busy that it runs out.
LEASE = {"CONF_graceful_lease_ttl": "60.0"}


@pytest.fixture
def app(redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """Whose workers have time to answer."""

    def patient(app: Celery, name: str, wait: float, workers: Any = None, **more: Any) -> Any:
        return ask(app, name, wait if workers is None else TIMEOUT, workers, **more)

    monkeypatch.setattr(why, "ask", patient)
    app = make_app(redis_db.url, redis_db.backend_url)
    yield app
    app.close()


def said(app: Celery, task_id: str, status: int = 0) -> str:
    return " / ".join(document(app, "Why", "why", task_id, status=status)["sentences"])


def test_it_waits_for_a_rate_limit(app: Celery) -> None:
    with start(app, "one@test", **LEASE) as one:
        one.ready()
        wait_until_heard(app)
        (told,) = app.control.rate_limit(
            f"{APP}.short", "1/h", reply=True, timeout=TIMEOUT, limit=1
        )
        assert "ok" in told["one@test"]
        for number in range(2):
            send(app, "short", f"{number}", number)
        one.wait_line(">> .* short 0")
        wait_until(lambda: [c.id for c in Operations(app).claims()] == ["1"], "one is left")
        assert said(app, "1") == "one@test holds it, and waits for the rate limit of its task"


def test_it_was_interrupted_and_waits(app: Celery) -> None:
    """In its queue again, which nobody consumes."""
    send(app, "count", "counts", 10**6)
    for times in ("once", "2 times"):
        with start(app, "one@test", **LEASE) as one:
            one.ready()
            wait_until(lambda: Operations(app).why("counts").state == "running", "it runs")
            one.wait_line("received")
            wait_until(lambda: Operations(app).checkpoint("counts"), "it has saved")
            one.term()
            assert one.wait() == 0
        found = said(app, "counts", status=1)
        assert found.startswith("it waits in the queue celery, at place 1 of 1; nobody consumes it")
        assert f"interrupted {times} / last: interrupted at 20" in found
        assert re.search(r"it has saved that it is at \d+ of loop", found)
        assert re.search(r"on one@test, shutdown, at \d+ of loop$", found)


def test_it_runs_on_a_worker_that_stops(app: Celery) -> None:
    send(app, "stubborn", "holds")
    with start(app, "one@test", **LEASE) as one:
        one.wait_line(">> .* stubborn")
        wait_until_heard(app)
        command(app, "stop", "one@test", "--yes", "--wait", str(TIMEOUT))
        wait_until(lambda: any(w.seconds_left for w in Operations(app).workers()), "it drains")
        found = said(app, "holds")
        assert re.match(
            r"it runs on one@test for \d+ s; that stops, and gives it up in \d+ s", found
        )
