"""What is stored of a task that is given up."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, states
from celery._state import _task_stack as task_stack
from celery.app.task import Context

from celery_graceful import Graceful
from celery_graceful.claims.fence import DELIVERY, mark_left
from celery_graceful.phases import INTERRUPTED
from celery_graceful.task.base import record
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import Board
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


@pytest.mark.parametrize("lost", [True, False])
def test_what_a_run_stores_that_does_not_count_any_more(
    lost: bool, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim was lost, or it was interrupted; a receiver of ``task_postrun`` may be who does."""
    with Celery("left", backend=redis_db.backend_url, set_as_current=False) as app:
        Graceful(app)

        @app.task(name="task", bind=True)
        def task(self: Any) -> None: ...

        monkeypatch.setattr(worker_state.board, "value", board := Board.create())
        fields = {"id": "it", DELIVERY: "a token", "is_eager": False, "called_directly": False}
        context = Context(fields)
        task.request_stack.push(context)
        task_stack.push(task)
        try:
            task.update_state(state="PROGRESS")
            assert app.AsyncResult("it").state == "PROGRESS"
            if lost:
                board.taken_away.add("a token")
                app.backend.store_result("it", None, states.SUCCESS, request=None)
                assert app.AsyncResult("it").state == "PROGRESS", "by this run it is not stored"
            else:
                app.backend.store_result("it", {}, INTERRUPTED, request=context)
                mark_left(context)
            task.update_state(state="IGNORED")
            task.update_state(task_id="other", state="PROGRESS")
        finally:
            task_stack.pop()
            task.request_stack.pop()
        assert app.AsyncResult("it").state == ("PROGRESS" if lost else INTERRUPTED)
        assert app.AsyncResult("other").state == "PROGRESS"
        task.update_state(task_id="it", state="PROGRESS")
        app.backend.store_result("it", None, states.SUCCESS)
        assert app.AsyncResult("it").state == states.SUCCESS, "who is no run stores what they like"
