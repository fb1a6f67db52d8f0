"""Batches that were cancelled, in a worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from celery_graceful.deliveries.stage import Stage
from celery_graceful.worker import cancelling
from celery_graceful.worker.cancelling import Cancelling, drop_revoked


class Member:
    """One that the worker holds."""

    def __init__(
        self, batch: str, stage: Stage = Stage.RUNNING, running_for: float = cancelling.AGAIN
    ) -> None:
        self.part, self.is_part = SimpleNamespace(is_callback=False, batch=batch), True
        self.stage, self.running_for = stage, running_for
        self.ended, self.tells_later, self.is_revoked = 0, False, False

    def terminate(self, pool: Any, signum: int) -> None:
        self.ended += 1

    def revoked(self) -> bool:
        self.is_revoked = True
        return True


def test_what_begins_at_that_moment_is_revoked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process had looked before, or had been handed it; and nothing is revoked twice.

    Nor what begins when all know of it, and leaves itself out.
    """
    now, asked = [0.0], []
    monkeypatch.setattr(cancelling, "monotonic", lambda: now[0])
    runs, handed, other = Member("b"), Member("b", Stage.HANDED_OVER), Member("c")
    held = [runs, handed, other]
    timer = SimpleNamespace(call_after=lambda seconds, ring: asked.append(seconds))
    worker = SimpleNamespace(timer=timer, consumer=SimpleNamespace(pool=None))
    ledger: Any = SimpleNamespace(open_requests=lambda: list(held))
    board: Any = Mock()
    one = Cancelling(worker, ledger, board, lambda: None)
    assert one.cancel({"b"}) == 2
    board.count_cancellation.assert_called_once_with()
    handed.stage = Stage.RUNNING
    held += [Member("b"), Member("b", running_for=0.01)]
    one.on_loop()
    assert [member.ended for member in held] == [1, 0, 0, 0, 0]
    now[0] += asked.pop()
    for _ in range(2):
        one.on_loop()
    assert [member.ended for member in held] == [1, 1, 0, 1, 0]


def test_what_waits_to_be_told_has_ended_otherwise() -> None:
    """Its result is stored when the backend is there again: others were revoked."""
    held = [Member("b", Stage.RECEIVED), Member("b", Stage.RECEIVED), Member("b")]
    held[1].tells_later = True
    drop_revoked(SimpleNamespace(open_requests=lambda: held))  # type: ignore[arg-type]
    assert [member.is_revoked for member in held] == [True, False, False]
