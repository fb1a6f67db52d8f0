"""A wake signal that was not heard is sent again."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace as Some
from typing import Any
from unittest.mock import MagicMock

import pytest

from celery_graceful.exceptions import Interrupted
from celery_graceful.phases import InterruptReason
from celery_graceful.pools import base, child, wake_signal
from celery_graceful.pools.prefork import PreforkAdapter
from celery_graceful.runs.run import Run, execute
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import Board
from celery_graceful.timeline.grace_period import Deadlines

DEADLINES = Deadlines(grace=30.0, soft=20.0, hard=25.0, source="a test")
ME = os.getpid()


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create()
    worker_state.attach(board)
    yield board
    worker_state.detach()


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """This process is a child of the pool, that counts what it hears."""
    heard: list[int] = []
    before = signal.signal(wake_signal.SIGNAL, lambda number, _: heard.append(number))
    yield heard
    signal.signal(wake_signal.SIGNAL, before)


def adapter() -> Any:
    pool = Some(_pool=Some(_pool=[Some(pid=ME)]), terminate_job=os.kill)
    worker = MagicMock(pool=pool)
    made = PreforkAdapter(
        worker,
        MagicMock(),
        MagicMock(),
        ring_loop=MagicMock(),
        ring_watch=MagicMock(),
        read_pending=MagicMock(),
    )
    made.terminate = made._aimed(pool.terminate_job)
    return made


def test_who_has_not_heard_is_told_again_less_and_less_often(
    board: Board, heard: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "time", Some(monotonic=lambda: 10.0))
    told = adapter()
    assert math.isinf(told.again_at)
    told.notify()
    told.ring_watch.assert_called_once_with()
    pauses = []
    for times in range(2, 5):
        before = told.again_at
        told.tell_again()
        assert len(heard) == times
        pauses.append(told.again_at - before)
    assert sorted(pauses) == pauses
    board.set_heard(ME, True)
    told.tell_again()
    assert len(heard) == 4
    assert math.isinf(told.again_at)
    told.notify()
    assert not board.has_heard(ME)
    assert told.again_at < math.inf


def test_who_is_singled_out_is_told_again(board: Board, heard: list[int]) -> None:
    board.set_heard(ME, True)
    told = adapter()
    told.terminate(ME, signal.SIGTERM)
    told.tell_again()
    assert len(heard) == 2
    assert board.is_target(ME)


def test_it_is_heard_where_it_could_be_looked(board: Board) -> None:
    def body() -> None:
        run = body.run  # type: ignore[attr-defined]
        run.interruptible = True
        board.begin_stop(DEADLINES, InterruptReason.SHUTDOWN)
        with run._lock:
            child._on_wake(wake_signal.SIGNAL, None)
        assert not board.has_heard(ME), "it came in between"
        child._on_wake(wake_signal.SIGNAL, None)

    body.run = Run("mine", "a task", graceful=True)  # type: ignore[attr-defined]
    with pytest.raises(Interrupted):
        execute(body.run, body, (), {})  # type: ignore[attr-defined]
    assert board.has_heard(ME)
