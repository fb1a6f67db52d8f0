"""A worker that is quiet, and goes on, or is told to stop meanwhile."""

from __future__ import annotations

from unittest.mock import MagicMock

import pytest

from celery_graceful.phases import Phase
from celery_graceful.settings import Settings
from celery_graceful.timeline.board import Board
from celery_graceful.timeline.grace_period import GracePeriod, deadlines
from celery_graceful.worker.drain import RESUME, STOP, Drain


class HeldLedger:
    """As much of a ledger as the drain tells."""

    releasing = False

    def begin_release(self) -> None:
        self.releasing = True

    def end_release(self) -> None:
        self.releasing = False

    def begin_stop(self) -> None: ...


@pytest.fixture
def drain() -> Drain:
    limits, restart = deadlines(GracePeriod(60.0, "a test")), MagicMock(asked_for=False)
    ledger, log = HeldLedger(), MagicMock()
    return Drain(MagicMock(), Settings(), limits, Board.create(), ledger, restart, log)  # type: ignore[arg-type]


def test_it_goes_on(drain: Drain) -> None:
    drain.request_quiet("a test")
    assert (drain.board.phase, drain.board.releasing) == (Phase.QUIET, True)
    assert drain.request_resume("a test")
    assert (drain.board.phase, drain.board.releasing) == (Phase.RUNNING, False)
    assert not drain.ledger.releasing
    assert RESUME in drain.bell.wait(0)


def test_who_stops_does_not_go_on(drain: Drain) -> None:
    drain.request_stop("a test")
    assert not drain.request_resume("a test")
    assert drain.board.phase is Phase.QUIET


def test_who_listens_first_hears_it_where_it_is_asked_for(drain: Drain) -> None:
    heard: list[tuple[bool, bool, bytes]] = []
    drain.add_first_listener(
        lambda: heard.append((drain.board.interrupted, drain.ledger.releasing, drain.bell.take()))
    )
    drain.request_quiet("a test")
    assert heard == []
    drain.bell.take()
    drain.request_stop("a test")
    drain.request_stop("a test")
    assert heard == [(True, True, b"")]
    assert drain.bell.take() == STOP


def test_a_signal_that_comes_between_is_not_undone(
    drain: Drain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler runs in the thread that is about to resume: anywhere in it."""
    enter = Board.enter

    def interrupted(board: Board, phase: Phase) -> None:
        if phase is Phase.RUNNING:
            drain.request_stop("SIGTERM")
        enter(board, phase)

    drain.request_quiet("a test")
    monkeypatch.setattr(Board, "enter", interrupted)
    assert not drain.request_resume("a test")
    assert drain.stopping
    assert (drain.board.phase, drain.board.releasing) == (Phase.QUIET, True)
    assert drain.ledger.releasing
