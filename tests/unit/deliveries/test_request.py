"""One delivery, and what its pool says of it."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from celery_graceful.deliveries.request import GracefulRequest, _ends_once
from celery_graceful.deliveries.stage import Stage


class Running(GracefulRequest):
    """Without a message; it cannot be told that it was revoked."""

    id, worker_pid, time_start, part, stage = "id", 1, 1.0, None, Stage.RUNNING
    _apply_result = None
    host = SimpleNamespace(revoke=lambda request: False)  # type: ignore[assignment]

    def __init__(self) -> None:
        self.ledger, self.said = MagicMock(), []

    def _announce_revoked(self, *args: Any, **kwargs: Any) -> None:
        self.said.append("revoked")

    def settle(self) -> None:
        pass

    def write_end(self) -> None:
        pass

    @_ends_once
    def on_success(self, failed__retval__runtime: Any, **kwargs: Any) -> None:
        self.said.append("succeeded")


def test_a_greenlet_that_was_killed_has_not_succeeded() -> None:
    """Celery's pools answer for it as for a success, and eventlet's before it is known why."""
    request = Running()
    pool = SimpleNamespace(
        terminate_job=lambda pid, signum: request.on_success((False, None, None))
    )
    request.terminate(pool, signal.SIGTERM)
    request.on_success((False, None, None))
    assert request.said == ["revoked"]


def test_what_its_pool_cannot_end_ends_by_itself() -> None:
    request = Running()
    pool = MagicMock()
    pool.terminate_job.side_effect = NotImplementedError
    with pytest.raises(NotImplementedError):
        request.terminate(pool, signal.SIGTERM)
    request.on_success((False, 5, 0.1))
    assert request.said == ["succeeded"]
