"""Tasks whose rows and steps are done in coroutines: killed there, and everything else goes on."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from celery import Celery

from celery_graceful import Graceful, GracefulTask, aio
from celery_graceful.testing import assert_survives_interruptions, graceful_run
from tests.unit.testing.tracing import assert_sees_each_call_end

app = Celery("coroutines", broker="redis://127.0.0.1:1/0", backend="redis://127.0.0.1:1/0")
Graceful(app)
stored: dict[int, Any] = {}
_numbers = itertools.count()

#: That the process keeps.
_loop = asyncio.new_event_loop()


def task(fn: Callable[..., Any]) -> Any:
    """A task of a test's own."""
    return app.task(base=GracefulTask, bind=True, name=f"coroutines.{next(_numbers)}")(fn)


async def fetch(number: int) -> int:
    await asyncio.sleep(0)
    return number * 2


def of_aio(self: Any) -> None:
    async def main() -> None:
        for number in self.iterate(range(3)):
            async with aio.interruptible():
                pages = await asyncio.gather(fetch(number), fetch(9), return_exceptions=True)
            async with aio.shield():
                stored[number] = pages
            await aio.sleep(0)

    aio.run(main())


def a_loop_a_row(self: Any) -> None:
    for number in self.iterate(range(3)):
        stored[number] = aio.run(fetch(number))


def of_an_async_generator(self: Any) -> None:
    async def rows() -> AsyncIterator[int]:
        for number in self.iterate(range(3)):
            yield number

    async def main() -> None:
        async for number in rows():
            stored[number] = self.step("fetch", int)

    aio.run(main())


def in_a_child(self: Any) -> None:
    async def one(number: int) -> None:
        stored[number] = self.step("fetch", int)

    async def main() -> None:
        for number in self.iterate(range(3)):
            await asyncio.gather(one(number), fetch(number))

    asyncio.run(main())


def in_a_task_group(self: Any) -> None:
    async def one(number: int) -> None:
        stored[number] = self.step("fetch", int)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined, unused-ignore]
            for number in self.iterate(range(3)):
                await group.create_task(one(number))

    asyncio.run(main())


def with_a_thread(self: Any) -> None:
    async def main() -> None:
        for number in self.iterate(range(3)):
            stored[number] = await asyncio.to_thread(lambda: 1)

    asyncio.run(main())


def in_a_loop_that_stays(self: Any) -> None:
    async def main() -> None:
        for number in self.iterate(range(3)):
            stored[number] = await fetch(number)

    _loop.run_until_complete(main())


def in_asgirefs_loop(self: Any) -> None:
    sync = pytest.importorskip("asgiref.sync")
    for number in self.iterate(range(3)):
        stored[number] = sync.async_to_sync(fetch)(number)


@pytest.mark.parametrize("kills", [True, False])
@pytest.mark.parametrize(
    "body",
    [
        of_aio,
        a_loop_a_row,
        of_an_async_generator,
        in_a_child,
        pytest.param(
            in_a_task_group,
            marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="no TaskGroup"),
        ),
        with_a_thread,
        in_a_loop_that_stays,
        in_asgirefs_loop,
    ],
)
def test_a_right_task_passes(body: Callable[..., Any], kills: bool) -> None:
    assert_survives_interruptions(task(body), effects=stored, kills=kills)
    assert asyncio.run(fetch(1)) == 2  # whatever comes next in this process


def test_a_task_that_does_not_survive_is_found() -> None:
    sent: list[int] = []

    @task
    def sends(self: Any) -> None:
        async def main() -> None:
            for number in self.iterate(range(3)):
                sent.append(await fetch(number))

        asyncio.run(main())

    with pytest.raises(AssertionError, match="does not survive kill -9 after row 1"):
        assert_survives_interruptions(sends, effects=sent)


class Server:
    """Sees the connection of its client end, which takes turns of the loop."""

    def __init__(self, ran: list[str], name: str) -> None:
        self._ran, self._name = ran, name

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *exc: Any) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        self._ran.append(f"{self._name} rolled back")


@asynccontextmanager
async def transaction(ran: list[str]) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        await asyncio.sleep(0)
        ran.append("transaction rolled back")
        raise


@pytest.mark.parametrize("stays", [False, True])
def test_what_is_dead_runs_no_line_more(stays: bool) -> None:
    """Neither where the task stands, nor where it waits, nor in coroutines beside it."""
    ran: list[str] = []
    stored.clear()

    async def beside() -> None:
        try:
            async with Server(ran, "beside"):
                try:
                    await asyncio.sleep(60)
                finally:
                    ran.append("finally, beside")
        except BaseException:
            ran.append("except, beside")

    async def inner(self: Any) -> None:
        try:
            async with Server(ran, "inner"), transaction(ran):
                try:
                    self.step("charge", ran.append, "charged")
                finally:
                    ran.append("finally, inner")
                    ran.append("finally, second line")
        except BaseException:
            ran.append("except, inner")
        finally:
            await asyncio.sleep(0)
            ran.append("finally, behind a wait")

    @task
    def outer(self: Any) -> None:
        async def main() -> None:
            other = asyncio.ensure_future(beside())
            await asyncio.sleep(0)
            try:
                stored[0] = await asyncio.gather(inner(self), fetch(1), return_exceptions=True)
            except BaseException:
                ran.append("except, main")
            finally:
                ran.append("finally, main")
                other.cancel()

        try:
            _loop.run_until_complete(main()) if stays else asyncio.run(main())
        finally:
            ran.append("finally, task")

    before = sys.gettrace(), sys.getprofile()
    run = graceful_run(outer).kill_at(step="charge")
    assert run.outcome == "killed"
    left = ["charged", "inner rolled back", "transaction rolled back"]
    assert sorted(ran) == ["beside rolled back", *left]
    assert (sys.gettrace(), sys.getprofile()) == before
    assert stored == {}
    ran.clear()
    # Nothing of the dead goes on in a loop that the process still has.
    _loop.run_until_complete(asyncio.sleep(0.01))
    assert ran == []
    assert run.resume().outcome == "succeeded"
    assert ran.count("charged") == 1
    assert "except, main" not in ran


def test_who_waits_for_the_dead_does_not_wait_for_ever() -> None:
    """Nobody awaits what is killed here, and nobody else would set the event."""

    @task
    def waits(self: Any) -> None:
        async def main() -> None:
            done = asyncio.Event()

            async def beside() -> None:
                self.checkpoint({"at": 1})
                done.set()

            keep = asyncio.ensure_future(beside())
            await done.wait()
            await keep

        asyncio.run(main())

    run = graceful_run(waits).kill_at(checkpoint=1, saved=True)
    assert (run.outcome, run.state) == ("killed", {"at": 1})
    assert run.resume().outcome == "succeeded"


def test_the_loop_of_a_test_is_left_alone() -> None:
    @task
    def steps(self: Any) -> None:
        self.step("charge", int)

    async def main() -> str:
        other = asyncio.ensure_future(asyncio.sleep(0.01, "mine"))
        run = graceful_run(steps).kill_at(step="charge").resume()
        assert run.outcome == "succeeded"
        return await other

    assert asyncio.run(main()) == "mine"


def test_who_traces_sees_each_call_end() -> None:
    """Also where a coroutine waits, and goes on, while it is cut off."""

    @task
    def traced(self: Any) -> None:
        async def main() -> None:
            async with Server([], "server"):
                try:
                    self.checkpoint()
                finally:
                    await asyncio.sleep(0)

        asyncio.run(main())

    assert_sees_each_call_end(traced, __file__)
