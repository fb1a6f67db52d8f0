"""Whether the state of an interrupted task is stored: decided as Celery decides it for results."""

from __future__ import annotations

import threading

import pytest
from celery import Celery
from celery.app import task as celery_task
from celery.app.task import Context

from celery_graceful import Graceful
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


def test_threads_and_greenlets_share_the_backend_of_an_app_that_stores_nothing() -> None:
    app = Celery("stores nothing", set_as_current=False)
    Graceful(app)
    found = []
    thread = threading.Thread(target=lambda: found.append(app.backend))
    thread.start()
    thread.join()
    assert found == [app.backend]
