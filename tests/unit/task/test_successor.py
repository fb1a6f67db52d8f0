"""What a task sends in its own place: when the main process is told of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject, Retry

from celery_graceful.claims.fence import DELIVERY
from celery_graceful.runs.run import Run, execute
from celery_graceful.task import successor
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import Board
from celery_graceful.timeline.successors import Sent

REQUEST = SimpleNamespace(called_directly=False, is_eager=False, **{DELIVERY: "boot:1"})
TASK = SimpleNamespace(request=REQUEST)


def raising(exc: Exception) -> Callable[[], Any]:
    def call() -> Any:
        raise exc

    return call


@pytest.mark.parametrize(
    ("how", "call", "noted"),
    [
        (successor.retry, raising(Retry()), Sent.RETRY),
        (successor.retry, Retry, Sent.RETRY),  # with ``throw=False``
        (successor.retry, raising(Reject("not sent", requeue=False)), None),
        (successor.retry, raising(MaxRetriesExceededError()), None),
        (successor.retry, raising(Ignore("of the user's, who retries too often")), None),
        (successor.retry, raising(ConnectionError()), None),
        (successor.replace, raising(Ignore("replaced")), Sent.REPLACEMENT),
        (successor.replace, raising(ConnectionError()), None),
        (successor.add_to_chord, lambda: "result", None),
    ],
)
def test_what_is_noted(
    how: Callable[..., Any],
    call: Callable[[], Any],
    noted: Sent | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board = Board.create()
    monkeypatch.setattr(worker_state.board, "value", board)
    with suppress(Exception):
        execute(Run("id", "name", graceful=True), lambda: how(TASK, call), (), {})
    assert board.successors.find("boot:1") is noted
