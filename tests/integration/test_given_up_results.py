"""What is stored of a task that is given up."""

from __future__ import annotations

import pytest
from celery import Celery, states
from celery.app.task import Context

from celery_graceful.task.base import INTERRUPTED, record
from tests.conftest import RedisDB


@pytest.mark.parametrize(
    ("stored", "given_up", "kept"),
    [
        *((state, True, state) for state in sorted(states.READY_STATES)),
        *((state, True, INTERRUPTED) for state in (None, states.STARTED, states.RETRY)),
        (states.FAILURE, False, INTERRUPTED),  # of an earlier run
    ],
)
def test_a_result_that_is_there_stays(
    stored: str | None, given_up: bool, kept: str, redis_db: RedisDB
) -> None:
    """Its task has ended, and the worker has not come to hear of it."""
    with Celery("given up", backend=redis_db.backend_url, set_as_current=False) as app:

        @app.task(name="task")
        def task() -> None: ...

        if stored is not None:
            is_error = stored in states.EXCEPTION_STATES
            app.backend.store_result("it", ValueError("no") if is_error else None, stored)
        context = Context({"id": "it", "args": (), "kwargs": {}})
        record(task, context, "shutdown", given_up=given_up)
        assert app.AsyncResult("it").state == kept
