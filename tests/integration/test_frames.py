"""A user's traceback begins with the user's task: in the log, the stored result and Sentry."""

from __future__ import annotations

import re
import subprocess
import sys
import traceback
from typing import Any

import pytest
from celery import Celery

from celery_graceful.runs import frames
from tests.conftest import RedisDB
from tests.support.peers import Project
from tests.support.workers import ROOT, TIMEOUT, Worker, wait_until

#: Tasks of the app.
NAMES = [
    "graceful",
    "hooked",
    "own_call",
    "retried",
    "interruptible",
    "looping",
    "plain_early",
    "plain_late",
]

#: What stands before the task, of others: what Celery's tracer calls, and autoretry.
BEFORE = {
    "retried": ["run", "retry", "run"],
    "own_call": ["__call__"],
    "plain_early": ["__protected_call__"],
    "plain_late": ["__protected_call__"],
}


def functions(text: str) -> list[str]:
    """The functions of a traceback, from the outermost to the innermost; without Sentry's own."""
    found = re.findall(r'File "([^"]+)", line \d+, in (\w+)', text)
    return [function for path, function in found if "/sentry_sdk/" not in path]


@pytest.mark.parametrize("pool", ["spawn", "threads"])
def test_whose_frames_come_first(pool: str, redis_db: RedisDB, project: Project) -> None:
    env = {"BROKER_URL": redis_db.url, "RESULT_URL": redis_db.backend_url}
    env["SENTRY_DSN"] = project.dsn
    with (
        Celery("t", broker=redis_db.url, backend=redis_db.backend_url) as app,
        Worker("tests.apps.failing", pool=pool, concurrency=2, env=env) as worker,
    ):
        worker.ready()
        for name in NAMES:
            app.send_task(f"tests.apps.failing.{name}", task_id=name)
        wait_until(lambda: all(app.AsyncResult(name).state == "FAILURE" for name in NAMES))
        wait_until(lambda: len(project.events()) == len(NAMES))
        worker.term()
        assert worker.wait() == 0
        for name in NAMES:
            stored = app.AsyncResult(name).traceback
            expected = ["trace_task", *BEFORE.get(name, []), name, "helper"]
            assert functions(stored) == expected, stored
        assert "celery_graceful/" not in worker.output, "the log"
    for event in project.events():
        exception = event["exception"]["values"][-1]
        assert "transaction" in event, "Sentry's tracer is around the task"
        name = event["transaction"].rpartition(".")[2]
        found = [frame["function"] for frame in exception["stacktrace"]["frames"]]
        assert found == [*BEFORE.get(name, []), name, "helper"], name


EAGER = """
import sentry_sdk
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport

class Printing(Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            if item.type == "event":
                (exception,) = item.payload.json["exception"]["values"]
                print([frame["function"] for frame in exception["stacktrace"]["frames"]])

sentry_sdk.init(
    dsn="http://key@127.0.0.1:9/1", transport=Printing, integrations=[CeleryIntegration()]
)
from tests.apps import failing
failing.graceful.apply()
"""


def test_eager_tasks_too() -> None:
    """As in other people's tests, where no worker runs. (Sentry's integration patches Celery.)"""
    done = subprocess.run(
        [sys.executable, "-c", EAGER], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.stdout.strip() == "['graceful', 'helper']", done.stderr


def test_what_is_taken_off() -> None:
    @frames.hidden
    def ours(fn: Any) -> None:
        fn()

    def theirs() -> None:
        ours(innermost)

    def innermost() -> None:
        raise LookupError

    with pytest.raises(LookupError) as caught:
        ours(lambda: ours(theirs))
    held = caught.value.__traceback__
    frames.take_off(caught.value)
    frames.take_off(caught.value)
    assert caught.value.__traceback__ is held
    found = [frame.name for frame in traceback.extract_tb(held)]
    assert found == ["test_what_is_taken_off", "<lambda>", "theirs", "innermost"]
    frames.take_off(LookupError())
