"""What is read out of what a pool says of a task's end."""

from __future__ import annotations

from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from billiard.pool import Pool

from celery_graceful.deliveries.exc_info import as_lost, how_it_died, raised


class Job:
    """As billiard's pool has one."""

    _job = 7

    def _set(self, _: Any, result: tuple[bool, Any]) -> None:
        self.exc = raised(result[1])


@pytest.mark.parametrize(("status", "how"), [(-9, "signal 9 (SIGKILL)"), (3, "exitcode 3")])
def test_a_child_died_as_billiard_says(status: int, how: str) -> None:
    job = Job()
    Pool.mark_as_worker_lost(None, job, status)
    assert how_it_died(job.exc) == how


def test_nobody_says_how() -> None:
    assert how_it_died(WorkerLostError("it is gone")) == ""
    assert how_it_died(ValueError("Worker exited prematurely: signal 9 (SIGKILL) Job: 7.")) == ""


@pytest.mark.parametrize(
    ("exc", "how"),
    [
        (SystemExit(3), "exitcode 3"),
        (SystemExit("no more"), "SystemExit('no more')"),
        (KeyboardInterrupt(), "KeyboardInterrupt()"),
    ],
)
def test_who_makes_its_process_leave_is_lost_as_in_celery(exc: BaseException, how: str) -> None:
    """Celery 5.7 waits for the process, and billiard says how it ended."""
    try:
        raise exc
    except BaseException:
        lost = raised(as_lost(ExceptionInfo()))
    assert isinstance(lost, WorkerLostError)
    assert how_it_died(lost) == how
