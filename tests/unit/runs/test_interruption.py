"""Which exceptions that end a task are interruptions; with workers: test_ended_by."""

from __future__ import annotations

import gc
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from celery_graceful import Interrupted, ShutdownTimeLimit
from celery_graceful.exceptions import TaskInterrupted
from celery_graceful.phases import Interrupt, InterruptReason
from celery_graceful.system.exception_chain import chain, is_in_hand
from tests.support.deliveries import Bench, bench


@pytest.fixture
def b() -> Iterator[Bench]:
    with bench() as made:
        yield made


def test_an_interruption_made_by_hand_may_carry_a_message(
    b: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def task(self: Any) -> None:
        raise Interrupted("the file is not there yet")

    with caplog.at_level("INFO", "celery_graceful.task.base"):
        state, outcome = b.deliver(b.task(task))
    assert state == "IGNORED"
    assert isinstance(outcome, TaskInterrupted)
    assert "has interrupted itself: the file is not there yet" in caplog.text


@pytest.mark.parametrize("args", [(), (None,), ("why",)])
def test_made_by_hand_it_has_no_interrupt(args: tuple[Any, ...]) -> None:
    exc = pickle.loads(pickle.dumps(Interrupted(*args)))
    assert exc.interrupt is None
    assert str(exc) == ("interrupted: why" if args == ("why",) else "interrupted")


def test_made_by_us_it_has_one() -> None:
    interrupt = Interrupt(InterruptReason.SHUTDOWN, float("inf"))
    assert Interrupted(interrupt).interrupt == interrupt


def test_the_limit_of_somebody_else_is_a_failure(b: Bench) -> None:
    """It comes with the result of a plain task, for instance."""

    def task(self: Any) -> None:
        raise ShutdownTimeLimit

    assert b.deliver(b.task(task))[0] == "FAILURE"


def test_what_is_raised_on_the_way_out_is_the_interruption(b: Bench) -> None:
    def task(self: Any) -> None:
        try:
            b.interrupt()
            self.sleep(0)
        finally:
            raise LookupError("the connection is gone")

    assert b.deliver(b.task(task))[0] == "IGNORED"


def test_what_is_raised_after_it_was_dealt_with_is_a_failure(b: Bench) -> None:
    def task(self: Any) -> None:
        try:
            b.interrupt()
            self.sleep(0)
        except Interrupted:
            pass
        raise LookupError("real")

    assert b.deliver(b.task(task))[0] == "FAILURE"


def test_an_exit_stays_an_exit(b: Bench) -> None:
    def task(self: Any) -> None:
        try:
            b.interrupt()
            self.sleep(0)
        except Interrupted:
            sys.exit(3)

    with pytest.raises(SystemExit):
        b.deliver(b.task(task))


class Group(BaseException):
    """As `BaseExceptionGroup`, which Python 3.10 has not."""

    def __init__(self, exceptions: list[BaseException]) -> None:
        self.exceptions = tuple(exceptions)


def test_a_group_of_interruptions_does_not_leave_the_task(b: Bench) -> None:
    """As it comes out of an ``asyncio.TaskGroup``: no ``Exception``, so it would end the child."""

    def task(self: Any) -> None:
        b.interrupt()
        caught: list[BaseException] = []
        try:
            self.sleep(0)
        except Interrupted as exc:
            caught.append(exc)
        raise Group(caught)

    assert b.deliver(b.task(task))[0] == "IGNORED"


def test_a_chain_may_be_a_circle() -> None:
    a, b, c = ValueError("a"), ValueError("b"), ValueError("c")
    a.__cause__, b.__context__, b.__cause__, c.__context__ = b, a, c, c
    assert set(chain(a)) == {a, b, c}
    assert list(chain(None)) == []


def raised() -> tuple[BaseException, weakref.ref[BaseException]]:
    exc = ShutdownTimeLimit()
    return exc, weakref.ref(exc)


def test_one_is_in_hand_while_it_is_dealt_with() -> None:
    ident = threading.get_ident()
    exc, ref = raised()
    assert not is_in_hand(ref, ident), "kept, and nobody deals with it"
    assert is_in_hand(ref, None), "nobody can tell"
    try:
        raise LookupError from exc
    except LookupError:
        assert is_in_hand(ref, ident)
        seen: list[bool] = []
        thread = threading.Thread(target=lambda: seen.append(is_in_hand(ref, ident)))
        thread.start()
        thread.join()
        assert seen == [True], "seen from another thread"
    assert not is_in_hand(ref, ident)
    del exc
    gc.collect()
    assert not is_in_hand(ref, None)


@types.coroutine
def wait() -> Iterator[None]:
    yield


async def passing(exc: BaseException) -> None:
    raise exc


async def through(exc: BaseException) -> None:
    await passing(exc)


async def dealing(exc: BaseException) -> None:
    try:
        await passing(exc)
    finally:
        await wait()


def test_a_coroutine_that_waits_may_have_it_in_hand() -> None:
    exc, ref = raised()
    coroutine = dealing(exc)
    coroutine.send(None)
    assert is_in_hand(ref, threading.get_ident())
    coroutine.close()


def test_one_that_a_coroutine_let_pass_is_in_nobodys_hand() -> None:
    """``gather`` may have made a result of it."""
    exc, ref = raised()
    with pytest.raises(ShutdownTimeLimit):
        through(exc).send(None)
    assert not is_in_hand(ref, threading.get_ident())
