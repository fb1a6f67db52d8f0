"""The watch over a drain, rung in an order that signals seldom make."""

from __future__ import annotations

import math
import time
from unittest.mock import MagicMock

from celery_graceful.phases import InterruptReason, Phase
from celery_graceful.settings import Settings
from celery_graceful.timeline.board import Board
from celery_graceful.timeline.grace_period import GracePeriod, deadlines
from celery_graceful.worker.drain import HARD, STOP, Drain
from celery_graceful.worker.giving_up import GivingUp
from celery_graceful.worker.last_stacks import LastStacks
from celery_graceful.worker.watch import Watch


def test_hard_is_heard_before_the_stop() -> None:
    """The handler notes the stop, the watch hears of the same SIGQUIT and rings first."""
    ledger, log, board = MagicMock(), MagicMock(), Board.create()
    ledger.active.return_value = ledger.give_up.return_value = []
    ledger.requeue.deferred = False
    limits = deadlines(GracePeriod(60.0, "a test"))
    drain = Drain(MagicMock(), Settings(), limits, board, ledger, MagicMock(asked_for=False), log)
    giving_up = GivingUp(MagicMock(), ledger, board, limits, MagicMock(), log)
    revocations = MagicMock()
    revocations.next_at.return_value = math.inf
    watch = Watch(
        drain,
        loop=MagicMock(),
        ledger=ledger,
        adapter=MagicMock(again_at=math.inf),
        places=MagicMock(),
        quiesce=MagicMock(),
        revocations=revocations,
        giving_up=giving_up,
        signal_pipe=MagicMock(),
        stacks=LastStacks(ledger, board, MagicMock(), Settings(), log),
        leave=MagicMock(),
        log=log,
    )
    board.begin_stop(limits, InterruptReason.SHUTDOWN)
    watch._step(HARD)
    assert giving_up.has_begun
    watch._step(STOP)
    assert board.phase is Phase.EXIT
    assert watch._last_resort_at <= time.monotonic() + 3.0
    said = [call.args[1].split(",")[0] for call in log.call_args_list]
    assert said == ["Stopping"]
    assert time.monotonic() < board.soft_at
