"""Coroutines that are tied to their task; on workers: ``integration/test_coroutines.py``."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import Reject, SoftTimeLimitExceeded

from celery_graceful import Interrupted, ShutdownTimeLimit, aio
from celery_graceful.phases import InterruptReason, Phase
from celery_graceful.runs import run as run_module
from celery_graceful.runs.run import Run, current, execute
from celery_graceful.timeline.grace_period import Deadlines
from tests.support.deliveries import Bench, bench
from tests.support.workers import TIMEOUT


@pytest.fixture
def b() -> Iterator[Bench]:
    with bench() as made:
        yield made


def run() -> Run:
    found = current()
    assert found is not None
    return found


class Stop:
    """Stops the worker, and does as the watch does: in another thread, or here."""

    def __init__(self, b: Bench) -> None:
        self.b = b

    def __call__(self, phase: Phase = Phase.QUIET) -> None:
        self.b.interrupt()
        self.b.board.enter(phase)
        assert run().take_due() is None, "nothing is raised wherever a thread stands"

    def soon(self) -> None:
        """When the coroutine waits."""
        found = run()

        def stop() -> None:
            self.b.interrupt()
            found.take_due()

        threading.Timer(0.05, stop).start()


def deliver(b: Bench, main: Any) -> tuple[str, Any]:
    """The state of a task that runs a coroutine."""

    def task(self: Any) -> Any:
        return asyncio.run(main())

    return b.deliver(b.task(task))


async def is_not_cancelled() -> None:
    """No cancellation is left over."""
    await asyncio.sleep(0)
    await asyncio.sleep(0.01)


def test_outside_of_a_task_nothing_is_tied() -> None:
    async def main() -> int:
        async with aio.interruptible(), aio.limited(), aio.shield():
            await aio.sleep(0.001)
        return 3

    assert asyncio.run(main()) == aio.run(main()) == 3


def test_what_cannot_be_run() -> None:
    with pytest.raises(TypeError, match="call the async function"):
        aio.run(lambda: None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"aio\.sleep: -1"):
        asyncio.run(aio.sleep(-1))


@pytest.mark.parametrize("inner", [aio.interruptible, aio.limited])
def test_who_handles_it_goes_on(b: Bench, inner: Any) -> None:
    """Blocks may nest; the innermost that may be interrupted raises, once."""
    stop = Stop(b)

    async def main() -> str:
        async with aio.limited():
            with pytest.raises(Interrupted) as caught:  # noqa: PT012
                async with aio.interruptible(), inner():
                    stop.soon()
                    await asyncio.sleep(TIMEOUT)
            assert caught.value.interrupt is not None
            await is_not_cancelled()
            async with aio.shield():
                await is_not_cancelled()
            with pytest.raises(Interrupted):
                await aio.sleep(0)
            await is_not_cancelled()
        return "handled"

    assert deliver(b, main) == ("SUCCESS", "handled")


def test_one_that_comes_at_the_very_end_of_the_block(b: Bench) -> None:
    stop = Stop(b)

    async def main() -> str:
        with pytest.raises(Interrupted):
            async with aio.interruptible():
                stop()  # its loop has not looked
        await is_not_cancelled()
        return "handled"

    assert deliver(b, main) == ("SUCCESS", "handled")


@pytest.mark.parametrize("failure", [None, LookupError])
def test_a_cancellation_that_has_not_landed(b: Bench, failure: type[Exception] | None) -> None:

    async def main() -> str:
        with pytest.raises(failure or Interrupted):  # noqa: PT012
            async with aio.interruptible():
                (tie,) = run().ties
                b.interrupt()
                tie._look()  # type: ignore[attr-defined]
                if failure is not None:
                    raise failure
        await is_not_cancelled()
        return "handled"

    assert deliver(b, main) == ("SUCCESS", "handled")


def test_cancellations_of_others_are_as_ever(b: Bench) -> None:
    async def main() -> str:
        async with aio.interruptible():
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.sleep(TIMEOUT), 0.01)
            sleeping = asyncio.ensure_future(aio.sleep(TIMEOUT))
            await asyncio.sleep(0)
            sleeping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sleeping
        return "done"

    assert deliver(b, main) == ("SUCCESS", "done")


def test_a_swallowed_interrupt_is_followed_by_the_limit(b: Bench) -> None:
    stop = Stop(b)

    async def main() -> None:
        async with aio.interruptible():
            stop()
            for _ in range(2):
                try:
                    await asyncio.sleep(TIMEOUT)
                except asyncio.CancelledError:
                    stop(Phase.SOFT)

    def task(self: Any) -> str:
        with pytest.raises(ShutdownTimeLimit):
            aio.run(main())
        assert self.interrupted
        return "limited"

    assert b.deliver(b.task(task)) == ("SUCCESS", "limited")


def test_a_soft_time_limit(b: Bench) -> None:
    async def main() -> None:
        found = run()
        found.soft_limit_hit = True
        assert found.take_due() is None
        await asyncio.gather(asyncio.sleep(TIMEOUT), return_exceptions=True)

    def task(self: Any) -> str:
        with pytest.raises(SoftTimeLimitExceeded):
            aio.run(main())
        return "limited"

    assert b.deliver(b.task(task)) == ("SUCCESS", "limited")


def test_a_plain_task_is_limited_and_no_more(b: Bench) -> None:
    async def main() -> str:
        async with aio.interruptible(), aio.shield():
            b.interrupt()
            assert run().take_due() is None
        await aio.sleep(0.01)
        b.board.enter(Phase.SOFT)
        run().take_due()
        await asyncio.sleep(TIMEOUT)
        return "not reached"

    with pytest.raises(ShutdownTimeLimit):
        execute(Run("id", "name", graceful=False), lambda: aio.run(main()), (), {})


def test_shields_of_several_coroutines(b: Bench) -> None:
    """The last one that leaves raises; each of them is told once."""
    stop, seen = Stop(b), []

    async def write(seconds: float) -> None:
        async with aio.shield():
            await asyncio.sleep(seconds)
            seen.append(seconds)
        await asyncio.sleep(TIMEOUT)

    async def main() -> None:
        async with aio.interruptible():
            writers = asyncio.gather(write(0.05), write(0.1), return_exceptions=True)
            await asyncio.sleep(0)
            stop()
            await writers

    began = time.monotonic()
    assert deliver(b, main)[0] == "IGNORED"
    assert seen == [0.05, 0.1]
    assert time.monotonic() - began < TIMEOUT / 2


def test_a_loop_that_does_not_come_to_it(b: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half way between the deadlines the limit is raised where its code stands."""
    now = [0.0]
    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    async def main() -> None:
        async with aio.limited():
            deadlines = Deadlines(grace=10.0, soft=0.01, hard=2.0, source="test")
            b.board.begin_stop(deadlines, InterruptReason.SHUTDOWN)
            b.board.enter(Phase.SOFT)
            found = run()
            assert found.take_due() is None, "it is asked"
            now[0] = b.board.requested_at + 0.9
            assert found.take_due() is None, "it may still come to it"
            now[0] = b.board.requested_at + 1.1
            found.raise_due()
            raise AssertionError("not raised")

    assert deliver(b, main)[0] == "IGNORED"


def test_a_loop_that_was_closed_keeps_nothing_off(b: Bench) -> None:
    """With a coroutine in the middle of a block, which nobody will go on with."""

    async def main() -> None:
        async with aio.interruptible():
            await asyncio.sleep(TIMEOUT)

    def task(self: Any) -> None:
        loop = asyncio.new_event_loop()
        left = loop.create_task(main())
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        b.interrupt()
        b.board.enter(Phase.SOFT)
        try:
            run().raise_due()
        finally:
            left._log_destroy_pending = False  # type: ignore[attr-defined]

    assert b.deliver(b.task(task))[0] == "IGNORED"


def test_what_is_left_over_belongs_to_no_task(b: Bench) -> None:
    """A coroutine that goes on in a loop of the process when its task has ended."""
    context: list[contextvars.Context] = []

    def task(self: Any) -> None:
        context.append(contextvars.copy_context())

    b.deliver(b.task(task))
    b.interrupt()

    async def main() -> str:
        await aio.sleep(0)
        return "went on"

    assert context[0].run(asyncio.run, main()) == "went on"


def test_a_loop_in_another_thread(b: Bench) -> None:
    """And a task that is not tied again when the coroutine has ended."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    stop = Stop(b)

    async def main() -> None:
        async with aio.interruptible():
            await asyncio.sleep(TIMEOUT)

    def task(self: Any) -> None:
        stop.soon()
        try:
            asyncio.run_coroutine_threadsafe(main(), loop).result()
        finally:
            assert not run().ties

    try:
        assert b.deliver(b.task(task))[0] == "IGNORED"
        assert not asyncio.all_tasks(loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Lost(Exception):
    """What a library makes of a cancellation."""


async def loses() -> None:
    try:
        await asyncio.sleep(TIMEOUT)
    except asyncio.CancelledError as exc:
        raise Lost from exc


async def hides() -> None:
    try:
        await asyncio.sleep(TIMEOUT)
    except asyncio.CancelledError:
        raise Lost from None


async def fails_to_clean_up() -> None:
    try:
        await asyncio.sleep(TIMEOUT)
    finally:
        raise Lost


async def gathers() -> None:
    await asyncio.gather(loses(), asyncio.sleep(TIMEOUT))


class Group(Exception):
    """As ``ExceptionGroup``, which Python 3.10 has not."""

    def __init__(self, exceptions: list[BaseException]) -> None:
        self.exceptions = tuple(exceptions)


async def groups() -> None:
    raise Group([*await asyncio.gather(loses(), loses(), return_exceptions=True)])


CONVERTING = [loses, hides, fails_to_clean_up, gathers]


@pytest.mark.parametrize("converting", CONVERTING)
def test_what_a_library_makes_of_the_cancellation_is_the_interruption(
    b: Bench, converting: Callable[[], Any]
) -> None:
    stop, seen = Stop(b), []

    async def main() -> None:
        try:
            async with aio.interruptible():
                stop.soon()
                await converting()
        except Interrupted as exc:
            seen.append(exc)
            await is_not_cancelled()
            raise

    assert deliver(b, main)[0] == "IGNORED"
    assert [type(exc.__cause__) for exc in seen] == [Lost]


@pytest.mark.parametrize("converting", CONVERTING)
def test_what_it_makes_of_the_limit(b: Bench, converting: Callable[[], Any]) -> None:
    stop = Stop(b)

    async def main() -> None:
        asyncio.get_running_loop().call_later(0.05, stop, Phase.SOFT)
        await converting()

    def task(self: Any) -> None:
        aio.run(main())

    assert b.deliver(b.task(task, autoretry_for=(Exception,)))[0] == "IGNORED"


def test_what_it_makes_of_a_soft_time_limit_is_its_own(b: Bench) -> None:
    async def main() -> None:
        found = run()
        found.soft_limit_hit = True
        assert found.take_due() is None
        await loses()

    def task(self: Any) -> None:
        aio.run(main())

    state, outcome = b.deliver(b.task(task))
    assert (state, type(outcome)) == ("FAILURE", Lost)


def test_what_has_nothing_to_do_with_the_cancellation_is_an_error(b: Bench) -> None:
    """Also that of a limit of its own, which is a cancellation as well."""
    stop = Stop(b)

    async def main() -> None:
        async with aio.interruptible():
            stop.soon()
            try:
                await asyncio.sleep(TIMEOUT)
            except asyncio.CancelledError:
                pass
            await asyncio.wait_for(asyncio.sleep(TIMEOUT), 0.01)

    state, outcome = deliver(b, main)
    assert (state, type(outcome)) == ("FAILURE", asyncio.TimeoutError)


def test_what_is_said_in_celerys_words_counts_as_said(b: Bench) -> None:
    stop = Stop(b)

    async def main() -> None:
        async with aio.interruptible():
            stop.soon()
            try:
                await asyncio.sleep(TIMEOUT)
            finally:
                raise Reject

    assert deliver(b, main)[0] == "REJECTED"


@pytest.mark.parametrize("converting", [None, *CONVERTING, groups])
def test_a_retry_that_is_asked_for_in_the_block(
    b: Bench, converting: Callable[[], Any] | None
) -> None:
    """As ``autoretry_for`` asks for one: no attempt is counted."""
    stop = Stop(b)

    def task(self: Any) -> None:
        async def main() -> None:
            async with aio.interruptible():
                stop.soon()
                try:
                    await (asyncio.sleep(TIMEOUT) if converting is None else converting())
                except (Exception, asyncio.CancelledError) as exc:
                    raise self.retry(exc=exc) from exc

        asyncio.run(main())

    assert b.deliver(b.task(task))[0] == "IGNORED"


async def numbers() -> AsyncIterator[int]:
    async with aio.interruptible():
        for number in range(100000):
            yield number


async def consume() -> None:
    async for _ in numbers():
        await asyncio.sleep(0.01)


async def consume_and_lose() -> None:
    async for _ in numbers():
        await loses()


async def consume_in_block() -> None:
    async with aio.interruptible():
        await consume()


async def leave_elsewhere() -> None:
    block = aio.interruptible()
    await block.__aenter__()

    async def leave() -> None:
        await asyncio.sleep(TIMEOUT)
        await block.__aexit__(None, None, None)

    await asyncio.ensure_future(leave())


ASTRAY = [consume, consume_and_lose, consume_in_block, leave_elsewhere]


@pytest.mark.parametrize("way", [asyncio.run, aio.run])
@pytest.mark.parametrize("astray", ASTRAY)
def test_a_cancellation_that_comes_past_its_block(
    b: Bench, astray: Callable[[], Any], way: Callable[[Any], Any]
) -> None:
    stop = Stop(b)

    def task(self: Any) -> None:
        stop.soon()
        way(astray())

    assert b.deliver(b.task(task))[0] == "IGNORED"


@pytest.mark.parametrize("astray", ASTRAY)
def test_one_that_comes_out_of_another_thread(b: Bench, astray: Callable[[], Any]) -> None:
    """As that of ``concurrent.futures``, which says nothing."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    stop = Stop(b)

    def task(self: Any) -> None:
        stop.soon()
        asyncio.run_coroutine_threadsafe(astray(), loop).result()

    try:
        assert b.deliver(b.task(task))[0] == "IGNORED"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@pytest.mark.parametrize("astray", [consume, leave_elsewhere])
def test_one_that_nobody_hears_of(b: Bench, astray: Callable[[], Any]) -> None:
    """As an ``asyncio.TaskGroup`` makes nothing of a child that was cancelled."""
    stop = Stop(b)

    async def main() -> str:
        stop.soon()
        await asyncio.wait([asyncio.ensure_future(astray())])
        return "half of it"

    assert deliver(b, main)[0] == "IGNORED"


@pytest.mark.parametrize("astray", ASTRAY)
def test_it_ends_at_a_block_around_it(b: Bench, astray: Callable[[], Any]) -> None:
    stop = Stop(b)

    async def main() -> str:
        async with aio.limited():
            with pytest.raises(Interrupted):  # noqa: PT012
                async with aio.limited():
                    stop.soon()
                    await astray()
            await is_not_cancelled()
        return "handled"

    assert deliver(b, main) == ("SUCCESS", "handled")


@pytest.mark.parametrize("handles", [False, True])
def test_a_cancellation_of_the_tasks_own_stays_one(b: Bench, handles: bool) -> None:
    """Also after an interrupt that it has dealt with."""
    stop = Stop(b)

    async def main() -> None:
        if handles:
            with pytest.raises(Interrupted):  # noqa: PT012
                async with aio.interruptible():
                    stop.soon()
                    await asyncio.sleep(TIMEOUT)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(TIMEOUT)

    with pytest.raises(asyncio.CancelledError):
        deliver(b, main)


@pytest.mark.parametrize("block", [None, aio.limited, aio.interruptible])
def test_a_soft_time_limit_is_raised_where_a_shield_ends(b: Bench, block: Any) -> None:
    """Once, and an interrupt that comes behind it as ever."""
    handled: list[str] = []

    async def main() -> str:
        with pytest.raises(SoftTimeLimitExceeded):  # noqa: PT012
            async with aio.shield():
                run().soft_limit_hit = True
                assert run().take_due() is None
                await is_not_cancelled()
        await is_not_cancelled()
        async with aio.shield():
            await is_not_cancelled()
        try:
            async with aio.shield():
                b.interrupt()
        except Interrupted:
            handled.append("interrupt")
            raise
        return "not reached"

    async def within() -> str:
        async with block():
            return await main()

    assert deliver(b, main if block is None else within)[0] == "IGNORED"
    assert handled == ["interrupt"]


def test_a_deadline_that_comes_in_a_shield(b: Bench) -> None:
    stop = Stop(b)

    async def main() -> str:
        async with aio.limited():
            with pytest.raises(ShutdownTimeLimit):  # noqa: PT012
                async with aio.shield():
                    stop(Phase.SOFT)
                    await is_not_cancelled()
            await is_not_cancelled()
            try:
                return "handled"
            finally:
                async with aio.shield():
                    await is_not_cancelled()

    assert deliver(b, main) == ("SUCCESS", "handled")


def test_shields_in_what_cleans_up_after_an_interrupt(b: Bench) -> None:
    """Nothing is raised where they end: the interrupt is on its way to the end of the block."""
    stop, cleaned = Stop(b), []

    async def close(what: str) -> None:
        async with aio.shield():
            await is_not_cancelled()
        cleaned.append(what)

    async def work(number: int) -> None:
        try:
            await asyncio.sleep(TIMEOUT)
        finally:
            await close(f"file {number}")
            await asyncio.create_task(close(f"socket {number}"))

    async def main() -> None:
        async with aio.interruptible():
            stop.soon()
            await asyncio.gather(work(1), work(2))

    def task(self: Any) -> str:
        with pytest.raises(Interrupted):
            aio.run(main())
        return " ".join(sorted(cleaned))

    assert b.deliver(b.task(task)) == ("SUCCESS", "file 1 file 2 socket 1 socket 2")


def test_a_shield_in_what_cleans_up_after_a_limit(b: Bench) -> None:
    """In a coroutine that the block has not tied itself, too."""
    cleaned: list[int] = []

    async def clean(number: int) -> None:
        try:
            await asyncio.sleep(TIMEOUT)
        finally:
            async with aio.shield():
                await is_not_cancelled()
            await is_not_cancelled()
            cleaned.append(number)

    async def main() -> None:
        found = run()
        cleaning = asyncio.gather(clean(1), clean(2))
        await asyncio.sleep(0.01)
        found.soft_limit_hit = True
        assert found.take_due() is None
        await cleaning

    def task(self: Any) -> list[int]:
        with pytest.raises(SoftTimeLimitExceeded):
            aio.run(main())
        return cleaned

    assert b.deliver(b.task(task)) == ("SUCCESS", [1, 2])
