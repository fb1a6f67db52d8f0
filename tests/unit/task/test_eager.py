"""Tasks that are applied here and now, and interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain
from celery.result import EagerResult

from celery_graceful import INTERRUPTED, Interrupted, InterruptReason
from celery_graceful.exceptions import TaskInterrupted
from celery_graceful.phases import Phase
from celery_graceful.runs.run import current
from tests.support.deliveries import Bench, bench


@pytest.fixture
def b() -> Iterator[Bench]:
    with bench() as made:
        yield made


def by_hand(self: Any) -> None:
    raise Interrupted("nothing to do yet")


def is_interrupted(result: EagerResult) -> bool:
    assert isinstance(result, EagerResult)
    assert result.ready()
    assert not result.successful()
    assert not result.failed()
    assert isinstance(result.result, Interrupted)
    assert result.get(propagate=False, disable_sync_subtasks=False) is result.result
    with pytest.raises(Interrupted):
        result.get(disable_sync_subtasks=False)
    return bool(result.state == INTERRUPTED)


@pytest.mark.parametrize("throw", [None, True, False])
def test_no_interruption_escapes(b: Bench, throw: bool | None) -> None:
    result = b.task(by_hand).apply(task_id="mine", throw=throw)
    assert result.id == "mine"
    assert is_interrupted(result)


def test_always_eager(b: Bench) -> None:
    b.app.conf.update(task_always_eager=True, task_eager_propagates=True)
    assert is_interrupted(b.task(by_hand).delay())


def test_a_chain_goes_no_further(b: Bench) -> None:
    def never(self: Any, value: Any) -> None:
        raise AssertionError("the link before has no result")

    with pytest.raises(Interrupted):
        chain(b.task(by_hand).s(), b.task(never).s()).apply()


def test_inside_of_a_task_that_has_to_stop(b: Bench) -> None:
    """Also when the limit came out of it as something else; and the outer one stops."""

    def wrapping(self: Any) -> None:
        try:
            run = current()
            assert run is not None
            run.raise_due()
        except Exception as exc:
            raise LookupError("wrapped") from exc

    def sleeping(self: Any) -> None:
        self.sleep(60)

    inner = [b.task(wrapping), b.task(sleeping)]

    def outer(self: Any) -> None:
        b.interrupt()
        b.board.enter(Phase.SOFT)
        for one in inner:
            result = one.apply()
            assert is_interrupted(result)
            assert result.result.interrupt.reason is InterruptReason.SHUTDOWN
        self.checkpoint()
        raise AssertionError("it has to stop, too")

    state, outcome = b.deliver(b.task(outer))
    assert state == "IGNORED", outcome
    assert isinstance(outcome, TaskInterrupted)


def test_a_task_that_calls_itself(b: Bench) -> None:
    """It has a request of its own each time, and the outer one goes on with its own."""
    seen = []

    def recursive(self: Any, depth: int) -> int:
        self.request.depth = depth
        inner = made(depth - 1) if depth else 0
        seen.append(self.request.depth)
        return inner + 1

    made = b.task(recursive)
    assert made.apply((2,)).get() == 3
    assert b.deliver(made, 2) == ("SUCCESS", 3)
    assert seen == [0, 1, 2] * 2
