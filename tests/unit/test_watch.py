"""The watch over a drain, rung in an order that signals seldom make."""

from __future__ import annotations

import time
from unittest.mock import MagicMock

import pytest

from celery_graceful import run
from celery_graceful.board import Board
from celery_graceful.grace_period import GracePeriod, deadlines
from celery_graceful.phase import InterruptReason, Phase
from celery_graceful.watch import HARD, STOP, Watch


def test_hard_is_heard_before_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler notes the stop, the watch hears of the same SIGQUIT and rings first."""
    monkeypatch.setattr(run, "on_limited", run.on_limited)  # put back afterwards
    drain = MagicMock(stopping=True, board=Board.create())
    drain.deadlines = deadlines(GracePeriod(60.0, "a test"))
    drain.ledger.active.return_value = drain.ledger.give_up.return_value = []
    drain.ledger.requeue.deferred = drain.restart.asked_for = False
    watch = Watch(drain)
    drain.board.begin_stop(drain.deadlines, InterruptReason.SHUTDOWN)
    watch._step(HARD)
    assert watch.given_up
    watch._step(STOP)
    assert drain.board.phase is Phase.EXIT
    assert watch._last_resort_at <= time.monotonic() + 3.0
    said = [call.args[1].split(",")[0] for call in drain.log.call_args_list]
    assert said == ["Stopping"]
    assert time.monotonic() < drain.board.soft_at
