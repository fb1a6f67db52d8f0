"""Whether the state of an interrupted task is stored: decided as Celery decides it for results."""

from __future__ import annotations

import pytest
from celery import Celery
from celery.app import task as celery_task
from celery.app.task import Context

from celery_graceful.task.base import _ignores_result


@pytest.mark.parametrize(
    ("of_task", "of_request", "expected"),
    [
        (False, {}, False),
        (False, {"ignore_result": False}, False),
        (False, {"ignore_result": True}, True),
        (True, {}, True),
        (True, {"ignore_result": True}, True),
        # Since Celery 5.7 a caller may ask for a result that the task ignores.
        (True, {"ignore_result": False}, not hasattr(celery_task, "get_actual_ignore_result")),
    ],
)
def test_ignored_results(of_task: bool, of_request: dict[str, bool], expected: bool) -> None:
    app = Celery("ignored", set_as_current=False)

    @app.task(name="task", ignore_result=of_task)
    def task() -> None: ...

    assert _ignores_result(task, Context(of_request)) is expected
