"""Tasks that are applied here and now, and interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Task, chain
from celery.result import EagerResult

from celery_graceful import INTERRUPTED, Interrupted, ShutdownTimeLimit
from celery_graceful.exceptions import TaskInterrupted
from celery_graceful.phases import Phase
from celery_graceful.pools.base import watch_plain_task
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


def wrapping(self: Any) -> None:
    try:
        run = current()
        assert run is not None
        run.raise_due()
    except Exception as exc:
        raise LookupError("wrapped") from exc


def sleeping(self: Any) -> None:
    self.sleep(60)


def retrying(self: Any) -> None:
    try:
        wrapping(self)
    except Exception as exc:
        raise self.retry(exc=exc) from exc


@pytest.mark.parametrize("throw", [None, True, False])
@pytest.mark.parametrize("code", [wrapping, sleeping, retrying, by_hand])
def test_inside_of_a_task_that_has_to_stop(b: Bench, code: Any, throw: bool | None) -> None:
    """Also when the limit came out of it as something else: the outer one stops with it."""
    inner = b.task(code)

    def outer(self: Any) -> None:
        b.interrupt()
        b.board.enter(Phase.SOFT)
        inner.apply(throw=throw)
        raise AssertionError("it has to stop, too")

    state, outcome = b.deliver(b.task(outer))
    assert state == "IGNORED", outcome
    assert isinstance(outcome, TaskInterrupted)


def test_deep_inside_of_a_task_that_has_to_stop(b: Bench) -> None:
    inner = b.task(sleeping)

    def middle(self: Any) -> None:
        chain(inner.si(), inner.si()).apply()
        raise AssertionError("it has to stop, too")

    applied = b.task(middle)

    def outer(self: Any) -> None:
        b.interrupt()
        applied.apply()
        raise AssertionError("it has to stop, too")

    assert b.deliver(b.task(outer))[0] == "IGNORED"


@pytest.mark.parametrize("code", [wrapping, retrying])
def test_inside_of_a_plain_task_that_has_to_stop(b: Bench, code: Any) -> None:
    """It is told of its limit, and of nothing that it would not know."""
    inner = b.task(code)
    told = []

    def outer(self: Any) -> None:
        b.interrupt()
        b.board.enter(Phase.SOFT)
        try:
            inner.apply()
        except Exception as exc:
            told.append(exc)
            raise

    plain = b.task(outer, base=Task)
    watch_plain_task(plain)
    assert b.deliver(plain)[0] == "FAILURE"
    assert isinstance(told[0].__cause__, ShutdownTimeLimit)


def test_inside_of_a_plain_task_nothing_has_to_stop_at_a_safe_point(b: Bench) -> None:
    def passing(self: Any) -> str:
        self.checkpoint()
        return "passed"

    inner = [b.task(passing), b.task(by_hand)]
    results = []

    def outer(self: Any) -> None:
        b.interrupt()
        results.extend(one.apply() for one in inner)

    plain = b.task(outer, base=Task)
    watch_plain_task(plain)
    assert b.deliver(plain) == ("SUCCESS", None)
    assert [result.state for result in results] == ["SUCCESS", INTERRUPTED]


@pytest.mark.parametrize("late", [True, False])
def test_a_plain_task_inside_of_one_that_has_to_stop(b: Bench, late: bool) -> None:
    """Nobody is told of a failure."""
    failed = []

    class Failing(Task):
        def on_failure(self, *args: Any) -> None:
            failed.append(args)

    inner = b.task(wrapping, base=Failing, acks_late=late)
    watch_plain_task(inner)

    def outer(self: Any) -> None:
        b.interrupt()
        b.board.enter(Phase.SOFT)
        inner.apply()
        raise AssertionError("it has to stop, too")

    assert b.deliver(b.task(outer))[0] == "IGNORED"
    assert not failed


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
