"""Notes of what goes on in the place of a run."""

from __future__ import annotations

import mmap

import pytest

from celery_graceful.timeline.board import Board
from celery_graceful.timeline.successors import _PLACES, Sent, Successors


@pytest.fixture
def successors() -> Successors:
    return Successors(mmap.mmap(-1, 96 + Successors.SIZE), 96)


@pytest.mark.parametrize("sent", Sent)
def test_each_is_found_under_its_own_delivery(successors: Successors, sent: Sent) -> None:
    successors.note("boot:7", sent)
    assert successors.find("boot:7") is sent
    for other in (1, 6, 8, 7 + _PLACES, 7 << 2):
        assert successors.find(f"boot:{other}") is None


def test_nobody_has_to_take_them_away(successors: Successors) -> None:
    """However many there were before, and each of them has its own place for long."""
    for number in range(1, 3 * _PLACES):
        assert successors.find(f"boot:{number}") is None
        successors.note(f"boot:{number}", Sent.RETRY)
        assert successors.find(f"boot:{max(1, number - _PLACES + 1)}") is Sent.RETRY


def test_all_have_room_on_the_board() -> None:
    board = Board.create()
    for number in range(_PLACES):
        board.successors.note(f"boot:{number + 2**40}", Sent.REPLACEMENT)
    assert not board.marks.take("id")
    assert board.tallies.total(0) == 0
    assert not board.interrupted
