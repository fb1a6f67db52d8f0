"""The window of `celery_graceful.runs.run`: what may be raised in a task, when, and how often."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from celery_graceful import interruptible, shield
from celery_graceful.exceptions import Interrupted, ShutdownTimeLimit
from celery_graceful.phases import InterruptReason, Phase
from celery_graceful.runs.run import Run, current, execute, runs
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import Board
from celery_graceful.timeline.grace_period import Deadlines
from tests.unit.runs import stress_run

ROOT = Path(__file__).parents[3]

#: Tasks in each run of the stress. Few miss a race that happens once in a thousand times.
RUNS = 4000


@pytest.mark.parametrize("delivery", stress_run.DELIVERIES)
def test_window_under_stress(delivery: str) -> None:
    scenarios = list(stress_run.SCENARIOS)
    run = subprocess.run(
        [sys.executable, "-m", "tests.unit.runs.stress_run", delivery, str(RUNS), *scenarios],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert [line.split()[:2] for line in run.stdout.splitlines()] == [
        ["ok", scenario] for scenario in scenarios
    ]


@pytest.fixture
def board() -> Iterator[Board]:
    worker_state.attach(Board.create())
    assert worker_state.board.value is not None
    yield worker_state.board.value
    worker_state.detach()
    runs.clear()


DEADLINES = Deadlines(grace=30.0, soft=20.0, hard=25.0, source="a test")


def stop(board: Board, new: Phase = Phase.QUIET) -> None:
    board.begin_stop(DEADLINES, InterruptReason.SHUTDOWN)
    board.enter(new)


class Sent(list[Any]):
    """Stands for the interpreter: what was sent to a thread, and not delivered."""

    def __call__(self, ident: int, exc: object) -> None:
        self.append(exc)


def test_nothing_is_due_before_the_task_begins_and_after_it_has_ended(board: Board) -> None:
    stop(board, Phase.SOFT)
    run = Run("id", "name", graceful=True)
    assert run.take_due() is None
    with pytest.raises(ShutdownTimeLimit):
        execute(run, int, (), {})
    assert run.take_due() is None
    assert current() is None


def test_result_and_error_of_the_task_come_out(board: Board) -> None:
    assert execute(Run("id", "name", graceful=True), int, ("12",), {"base": 3}) == 5
    with pytest.raises(ValueError, match="invalid literal"):
        execute(Run("id", "name", graceful=True), int, ("x",), {})
    assert current() is None


def test_the_task_of_a_run_sees_it(board: Board) -> None:
    run = Run("id", "name", graceful=True)
    assert execute(run, current, (), {}) is run


@pytest.mark.parametrize(
    ("graceful", "new", "in_block", "expected"),
    [
        (True, Phase.QUIET, False, None),
        (True, Phase.QUIET, True, Interrupted),
        (True, Phase.SOFT, False, ShutdownTimeLimit),
        (True, Phase.SOFT, True, ShutdownTimeLimit),
        (False, Phase.QUIET, True, None),
        (False, Phase.SOFT, False, ShutdownTimeLimit),
        (False, Phase.SOFT, True, ShutdownTimeLimit),
    ],
)
def test_what_is_due(
    board: Board, graceful: bool, new: Phase, in_block: bool, expected: type | None
) -> None:
    def body() -> object:
        run = current()
        assert run is not None
        if in_block:
            with interruptible():
                stop(board, new)
                return run.take_due()
        stop(board, new)
        return run.take_due()

    assert execute(Run("id", "name", graceful=graceful), body, (), {}) is expected


def test_each_is_due_once(board: Board) -> None:
    def body() -> list[object]:
        run = current()
        assert run is not None
        seen = []
        with interruptible():
            stop(board)
            run.soft_limit_hit = True
            seen += [run.take_due(), run.take_due(), run.take_due()]
        stop(board, Phase.SOFT)
        return [*seen, run.take_due(), run.take_due()]

    due = execute(Run("id", "name", graceful=True), body, (), {})
    assert due == [SoftTimeLimitExceeded, Interrupted, None, ShutdownTimeLimit, None]


def test_shields_nest_and_the_outermost_exit_raises(board: Board) -> None:
    passed = []

    def body() -> None:
        run = current()
        assert run is not None
        with interruptible(), shield():
            with shield():
                stop(board, Phase.SOFT)
                run.soft_limit_hit = True
                with shield(), interruptible():
                    passed.append(run.take_due())
                passed.append(run.take_due())
            passed.append(run.take_due())
            passed.append(run.shielded)
        passed.append("not reached")

    with pytest.raises(SoftTimeLimitExceeded):
        execute(Run("id", "name", graceful=True), body, (), {})
    assert passed == [None, None, None, True]


def test_a_shield_in_which_an_interrupt_came_raises_it_outside_of_blocks_too(board: Board) -> None:
    def body() -> None:
        with shield():
            stop(board)

    with pytest.raises(Interrupted) as caught:
        execute(Run("id", "name", graceful=True), body, (), {})
    assert caught.value.interrupt is not None
    assert caught.value.interrupt.reason is InterruptReason.SHUTDOWN


def test_a_plain_task_is_not_interrupted_at_the_exit_of_a_shield(board: Board) -> None:
    def body() -> str:
        with shield():
            stop(board)
        return "done"

    assert execute(Run("id", "name", graceful=False), body, (), {}) == "done"


def test_an_error_in_a_shield_comes_out_when_nothing_is_due(board: Board) -> None:
    def body() -> None:
        with shield():
            raise LookupError

    with pytest.raises(LookupError):
        execute(Run("id", "name", graceful=True), body, (), {})


def test_who_handles_an_interrupt_is_not_interrupted_again_by_shields(board: Board) -> None:
    def body() -> str:
        stop(board)
        try:
            with interruptible():
                pass
        except Interrupted:
            with shield():
                pass
            return "cleaned up"
        return "not interrupted"

    assert execute(Run("id", "name", graceful=True), body, (), {}) == "cleaned up"


def test_a_block_that_was_left_stays_closed(board: Board) -> None:
    """Also when the exception that left it is forgotten later."""

    def body() -> list[object]:
        run = current()
        assert run is not None
        kept = None
        try:
            with interruptible(), interruptible():
                stop(board)
                run.raise_due()
        except Interrupted as exc:
            kept = exc
        seen = [run.interruptible, kept is not None]
        del kept
        return [*seen, run.interruptible, run.take_due()]

    assert execute(Run("id", "name", graceful=True), body, (), {}) == [False, True, False, None]


def test_asynchronous_exceptions_of_a_run(board: Board) -> None:
    """One that has not landed when the window closes is taken back, and due again later."""
    sent = Sent()

    def body() -> None:
        run = current()
        assert run is not None
        stop(board, Phase.SOFT)
        run.send_async(sent)
        run.send_async(sent)
        with shield():
            run.send_async(sent)
        sent.append("not reached")

    with pytest.raises(ShutdownTimeLimit):
        execute(Run("id", "name", graceful=True), body, (), {})
    first, second = sent
    assert isinstance(first, type)
    assert issubclass(first, ShutdownTimeLimit)
    assert second is None


def test_raised_at_a_safe_point_it_is_not_raised_from_outside_as_well(board: Board) -> None:
    run = Run("id", "name", graceful=True)
    sent = Sent()

    def body() -> None:
        with interruptible():
            stop(board)
            run.send_async(sent)
            with pytest.raises(Interrupted):
                run.interrupt_here()
            assert sent[1:] == [None], "taken back"
            run.send_async(sent)
            assert run.take_due() is None

    execute(run, body, (), {})
    assert len(sent) == 2


def test_one_that_lands_leaves_the_next_one_known(board: Board) -> None:
    """The next one may be sent while the first is being made, in its own thread."""
    run = Run("id", "name", graceful=True)
    sent = Sent()

    def body() -> None:
        with interruptible():
            stop(board)
            run.send_async(sent)
            stop(board, Phase.SOFT)
            run.send_async(sent)
            assert isinstance(sent[0](), Interrupted)  # as the interpreter does
            with pytest.raises(ShutdownTimeLimit), shield():
                assert sent[2:] == [None], "kept out of the shield"

    execute(run, body, (), {})
    assert len(sent) == 3


def test_one_that_is_on_its_way_does_not_land_behind_the_block(board: Board) -> None:
    """It may be sent while its thread is on the way out of the block."""
    sent = Sent()

    def body() -> None:
        run = current()
        assert run is not None
        with interruptible():
            stop(board)
            run.send_async(sent)
        assert sent[1:] == [None], "taken back"
        assert run.take_due() is None
        with pytest.raises(Interrupted), shield():
            pass  # a safe point, where it has not been raised yet
        with pytest.raises(Interrupted), interruptible():
            pytest.fail("not raised at once")

    execute(Run("id", "name", graceful=True), body, (), {})
    assert len(sent) == 2


def test_one_that_is_on_its_way_out_of_an_inner_block_is_raised_in_the_outer_one(
    board: Board,
) -> None:
    sent = Sent()

    def body() -> None:
        run = current()
        assert run is not None
        with interruptible():
            inner = interruptible()
            inner.__enter__()
            stop(board)
            run.send_async(sent)
            with pytest.raises(Interrupted):
                inner.__exit__(None, None, None)
            assert sent[1:] == [None], "not raised twice"
            assert run.take_due() is None

    execute(Run("id", "name", graceful=True), body, (), {})


def test_a_block_that_begins_does_not_add_to_what_is_on_its_way(board: Board) -> None:
    """Else ``Interrupted`` would take the place of the limit that lands there."""

    def body() -> None:
        run = current()
        assert run is not None
        with interruptible():
            stop(board, Phase.SOFT)
            run.send_async(Sent())
            with interruptible():
                assert run.take_due() is None
            assert run.take_due() is None

    execute(Run("id", "name", graceful=True), body, (), {})
