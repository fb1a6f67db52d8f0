"""What is done for a task whose end something cut short."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.exceptions import Ignore, Reject, Retry
from celery.worker import state

from celery_graceful.deliveries.handler_errors import let_go, requeues


class Held:
    def __init__(self, id: str) -> None:
        self.id, self.name = id, "shop.add"


def test_a_delivery_is_taken_off_all_of_celerys_books() -> None:
    """As ``state.task_ready`` does in the version installed."""
    other = Held("other")
    for forget in (state.task_ready, let_go):
        held = Held("id")
        books = [book for name, book in vars(state).items() if name.endswith("_requests")]
        books = [book for book in books if book is not state.successful_requests]
        assert len(books) >= 2
        for book in books:
            book.add(held)
            book.add(other)
        state.requests["id"] = held
        forget(held)
        assert "id" not in state.requests
        assert not any(held in book for book in books)
        assert all(other in book for book in books)
    state.requests["other"] = other
    let_go(Held("other"))
    assert state.requests.pop("other") is other, "another delivery of the same task"


OPTIONS = {"acks_late": True, "reject_on_worker_lost": True}
BOTH = {"acks_on_failure": True, "acks_on_timeout": True}
NEITHER = {"acks_on_failure": False, "acks_on_timeout": False}


@pytest.mark.parametrize(
    ("ended_by", "options", "expected"),
    [
        (ValueError(), BOTH, None),
        (ValueError(), NEITHER, False),
        (ValueError(), {"acks_on_failure_or_timeout": False}, False),  # Celery before 5.7
        (TimeLimitExceeded(1), BOTH, None),
        (TimeLimitExceeded(1), NEITHER, True),
        (TimeLimitExceeded(1), {"acks_on_failure_or_timeout": False}, True),
        (WorkerLostError(), BOTH, True),
        (SystemExit(1), BOTH, True),
        (WorkerLostError(), {**BOTH, "reject_on_worker_lost": False}, None),
        (Terminated(), BOTH, None),
        (Reject("", requeue=True), BOTH, True),
        (Reject("", requeue=False), BOTH, False),
        (Ignore(), BOTH, None),
        (Retry(), NEITHER, None),
        (ValueError(), {**NEITHER, "acks_late": False}, None),
    ],
)
def test_its_message_is_answered_by_its_outcome(
    ended_by: BaseException, options: dict[str, Any], expected: bool | None
) -> None:
    request: Any = SimpleNamespace(task=SimpleNamespace(**OPTIONS | options), is_settled=False)
    assert requeues(request, ended_by) is expected


def test_what_had_ended_before_its_process_was_lost_does_not_come_again() -> None:
    request: Any = SimpleNamespace(task=SimpleNamespace(**OPTIONS | BOTH), is_settled=True)
    assert requeues(request, WorkerLostError()) is None
