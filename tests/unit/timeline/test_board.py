"""The board: what the flag is up for, and who was revoked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_graceful.phases import InterruptReason
from celery_graceful.timeline import board_file, worker_state
from celery_graceful.timeline.board import PLACES, Board
from celery_graceful.timeline.grace_period import Deadlines
from tests.support.workers import ROOT

DEADLINES = Deadlines(grace=10.0, source="a test", soft=5.6, hard=7.0)


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create()
    worker_state.attach(board)
    yield board
    worker_state.detach()


def test_the_flag_is_up_while_one_reason_is_left(board: Board) -> None:
    assert not worker_state.flag.value[0]
    board.lose_lease()
    assert board.revoke("one", 1.0)
    assert worker_state.flag.value[0]
    assert not board.interrupted
    board.forget_lost()
    assert worker_state.flag.value[0]
    assert not board.has_lost
    board.begin_stop(DEADLINES, InterruptReason.SHUTDOWN)
    board.forget_revoked("one")
    assert worker_state.flag.value[0]
    assert board.interrupted
    assert board.revoked_until("one") is None


def test_no_word_stands_on_another(board: Board) -> None:
    for tell in (board.release, board.beat):
        tell(True)
        assert (board.place, board.interrupted, board.has_lost) == (0, False, False)
        tell(False)
    board.be_at(1)
    assert (board.releasing, board.beating, board.interrupted) == (False, False, False)


def test_a_lease_on_each_server(board: Board) -> None:
    assert board.holds("anybody")
    board.hold_lease(time.monotonic() + 60, "here")
    board.hold_lease(time.monotonic() - 1, "there", PLACES - 1)
    assert [board.holds(name) for name in ("here", "there", "lost")] == [True, None, False]
    assert [board.place_of(name) for name in ("here", "there")] == [0, PLACES - 1]
    board.forget_lease(PLACES - 1)
    assert [board.holds(name) for name in ("here", "there")] == [True, False]


def test_a_claim_is_surely_held_while_its_lease_is(board: Board) -> None:
    """Whichever was asked for before."""
    claims = ("here/1", "here/", "there/1", "lost/1", "hereafter/1")
    assert all(board.surely_holds(claim) for claim in claims)  # there is no lease
    board.hold_lease(time.monotonic() + 60, "here")
    board.hold_lease(time.monotonic() + 60, "there", 1)
    for _ in range(2):
        assert [board.surely_holds(claim) for claim in claims] == [True, True, True, False, False]
    board.hold_lease(time.monotonic() - 1, "here")
    assert [board.surely_holds(claim) for claim in claims[:3]] == [False, False, True]
    board.hold_lease(time.monotonic() + 60, "again")
    board.forget_lease(1)
    assert [board.surely_holds(claim) for claim in ("there/1", "here/1")] == [False, False]
    board.hold_lease(time.monotonic() + 60, "here", 2)
    assert [board.surely_holds(claim) for claim in ("here/2", "again/1")] == [True, True]


def test_revoked_tasks_are_told_apart(board: Board) -> None:
    assert board.revoked_until("one") is None
    assert board.revoke("one", 1.0)
    assert board.revoke("two", 2.0)
    assert board.revoke("one", 3.0)
    assert [board.revoked_until(name) for name in ("one", "two", "three")] == [3.0, 2.0, None]
    board.forget_revoked("three")
    board.forget_revoked("one")
    assert [board.revoked_until(name) for name in ("one", "two")] == [None, 2.0]
    assert worker_state.flag.value[0]
    board.forget_revoked("two")
    assert not worker_state.flag.value[0]


def test_more_than_there_is_room_for(board: Board) -> None:
    names = [str(number) for number in range(1000)]
    room = sum(board.revoke(name, 1.0) for name in names)
    assert 100 < room < 1000
    assert board.revoked_until(names[room]) is None
    board.aim(4711)  # its neighbours are not disturbed
    board.marks.set("task")
    assert board.revoked_until(names[room - 1]) == 1.0
    for name in names:
        board.forget_revoked(name)
    assert not worker_state.flag.value[0]
    assert board.is_target(4711)
    assert board.marks.take("task")


def test_files_of_dead_workers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(board_file.ENV, raising=False)
    code = (
        "import os, tempfile; tempfile.tempdir = {!r};"
        "from celery_graceful.timeline.board import Board;"
        "Board.create(spawn=True); os.kill(os.getpid(), 9)"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code.format(str(tmp_path))], check=False)
    old, new = sorted(tmp_path.iterdir())
    living = Board.create(spawn=True)
    own = Path(os.environ[board_file.ENV])
    assert {*tmp_path.iterdir()} == {old, new, own}, "they may have just been made"
    for path in (old, own):
        os.utime(path, (0, 0))
    another = Board.create(spawn=True)
    assert {*tmp_path.iterdir()} == {new, own, Path(os.environ[board_file.ENV])}
    living.close()
    another.close()
    assert [*tmp_path.iterdir()] == [new]


def test_spawned_children_see_the_same(board: Board) -> None:
    shared = Board.create(spawn=True)
    try:
        child = Board.announced()
        assert child is not None
        shared.revoke("one", 1.0)
        assert child.revoked_until("one") == 1.0
    finally:
        shared.close()


def test_marks_of_the_dead_take_no_room(board: Board) -> None:
    """A child that was killed before it looked leaves its mark."""
    dead = []
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", ""])
        board.aim(child.pid)
        child.wait()
        dead.append(child.pid)
    board.aim(os.getpid())
    board.aim(os.getpid())
    assert not any(board.is_target(pid) for pid in dead)
    assert board.is_target(os.getpid())
    assert not board.is_target(os.getpid()), "marked once"


LOOK = """
from celery_graceful.timeline.board import Board
board = Board.announced()
seen = {board.revoked_until("one") for _ in range(20_000)}
while seen == {None}:  # nobody came to note it meanwhile
    seen.add(board.revoked_until("one"))
print(seen - {None})
"""


def test_a_revocation_is_seen_whole() -> None:
    """By another process, that looks while it is noted: two of them, so that the flag stays up."""
    shared = Board.create(spawn=True)
    try:
        assert shared.revoke("another", 1.0)
        with subprocess.Popen(
            [sys.executable, "-c", LOOK], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as child:
            while child.poll() is None:
                assert shared.revoke("one", 5.0)
                shared.forget_revoked("one")
            assert child.stdout is not None
            assert child.stdout.read() == "{5.0}\n"
    finally:
        shared.close()


def test_a_child_says_where_it_stands_when_it_is_asked() -> None:
    board = Board.create()
    assert not board.wants_stack(7)
    board.ask_stack(7)
    assert board.wants_stack(7)
    assert not board.wants_stack(8)
    assert board.take_stack(7) is None
    board.give_stack(7, "here" * 2000)
    assert not board.wants_stack(7)
    assert (board.take_stack(7) or "").startswith("herehere")
    assert board.take_stack(8) is None
    board.ask_stack(8)
    assert board.take_stack(7) is None
    assert not board.has_ended(7, "run")
