"""Tasks whose work is done by coroutines."""

from __future__ import annotations

import asyncio
import threading
import time

from asgiref.sync import async_to_sync
from celery.exceptions import SoftTimeLimitExceeded

from celery_graceful import Graceful, GracefulTask, Interrupted, ShutdownTimeLimit, aio
from tests.apps import make_app, say

app = make_app("coroutines")
Graceful(app)

LONG = 60.0
task = app.task(base=GracefulTask, bind=True)


def begin(self):  # the request is that of the task's own thread
    say("started", self.name.rpartition(".")[2])


async def begun(self):
    """Behind others: they have begun."""
    begin(self)


async def work(self):
    """Many short waits, and what comes out of them."""
    name = self.name.rpartition(".")[2]
    end = time.monotonic() + LONG
    try:
        while time.monotonic() < end:
            await asyncio.sleep(0.01)
        say("NOT REACHED", name)
    finally:
        say("left", name)


@task
def sleeping(self):
    async def main():
        begin(self)
        await aio.sleep(LONG)

    aio.run(main())


@task
def gathering(self):
    """``return_exceptions`` swallows what is raised in its coroutines."""

    async def main():
        async with aio.interruptible():
            await asyncio.gather(work(self), work(self), begun(self), return_exceptions=True)
        say("NOT REACHED", self.request.id)

    asyncio.run(main())


@task
def shielded(self):
    async def write():
        async with aio.shield():
            begin(self)
            while not self.interrupted:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            say("written", self.request.id)

    async def main():
        async with aio.interruptible():
            await asyncio.gather(write(), write(), return_exceptions=True)

    aio.run(main())


@task
def to_sync(self):
    """Its coroutine runs in another thread."""

    async def main():
        async with aio.interruptible():
            begin(self)
            await work(self)

    async_to_sync(main)()


_loop = None
_lock = threading.Lock()


def process_wide_loop():
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, daemon=True).start()
    return _loop


@task
def process_wide(self):
    async def main():
        async with aio.interruptible():
            begin(self)
            await work(self)

    loop = process_wide_loop()
    try:
        asyncio.run_coroutine_threadsafe(main(), loop).result()
    finally:
        say("open", self.request.id, len(asyncio.all_tasks(loop)))


@task
def own_loop(self):
    """Used again by the next task."""
    loop = asyncio.new_event_loop()

    async def main():
        async with aio.interruptible():
            begin(self)
            await work(self)

    try:
        loop.run_until_complete(main())
    finally:
        say("open", self.request.id, len(asyncio.all_tasks(loop)))


@task
def limited(self):
    async def main():
        try:
            await asyncio.gather(work(self), work(self), begun(self), return_exceptions=True)
        except asyncio.CancelledError:
            say("limit", self.request.id)
            raise
        say("NOT REACHED", self.request.id)

    aio.run(main())


async def compute():
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        time.sleep(0.01)


@task
def computing(self):
    """Its loop never comes to anything else."""

    async def main():
        begin(self)
        await asyncio.gather(compute(), return_exceptions=True)
        await asyncio.sleep(0)
        say("NOT REACHED", self.request.id)

    aio.run(main())


@task
def untied(self):
    """``gather`` keeps the limit as a result; it comes a second time."""

    async def main():
        begin(self)
        kept = await asyncio.gather(compute(), return_exceptions=True)
        say("kept", type(kept[0]).__name__)
        while kept:  # a thread is reached between two waits
            await asyncio.sleep(0.01)

    asyncio.run(main())


class Lost(Exception):
    """What a library makes of a cancellation."""


@task
def converting(self):
    async def main():
        async with aio.interruptible():
            begin(self)
            try:
                await work(self)
            except asyncio.CancelledError as exc:
                raise Lost from exc

    asyncio.run(main())


@task
def failing_cleanup(self):
    async def main():
        async with aio.interruptible():
            begin(self)
            try:
                await work(self)
            finally:
                raise Lost

    async_to_sync(main)()


@app.task(base=GracefulTask, bind=True, autoretry_for=(Exception,), max_retries=0)
def converting_limit(self):
    async def main():
        begin(self)
        try:
            await work(self)
        except asyncio.CancelledError as exc:
            raise Lost from exc

    aio.run(main())


async def numbers():
    async with aio.interruptible():
        for number in range(1_000_000):
            yield number


async def consume(self):
    name = self.name.rpartition(".")[2]
    try:
        begin(self)  # the block is entered behind it: until then what is revoked ends anywhere
        async for _ in numbers():
            await asyncio.sleep(0.01)
    finally:
        say("left", name)


@task
def generating(self):
    """Its generator stands in the block; what waits, and is cancelled, does not."""
    asyncio.run(consume(self))


@task
def generating_elsewhere(self):
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    asyncio.run_coroutine_threadsafe(consume(self), loop).result()


@task
def left_elsewhere(self):
    async def main():
        block = aio.interruptible()
        await block.__aenter__()

        async def leave():
            begin(self)
            await work(self)
            await block.__aexit__(None, None, None)

        await asyncio.create_task(leave())

    asyncio.run(main())


@app.task(base=GracefulTask, bind=True, soft_time_limit=1)
def soft_limit_in_shield(self):
    done = []

    async def main():
        try:
            async with aio.shield():
                await asyncio.sleep(1.5)
                done.append("shielded")
            done.append("NOT REACHED")
        except SoftTimeLimitExceeded:
            done.append("limit")
        await asyncio.sleep(0.1)
        done.append("once")

    aio.run(main())
    return done


@task
def handling(self):
    async def main():
        begin(self)
        try:
            async with aio.interruptible():
                await asyncio.sleep(LONG)
        except Interrupted:
            await asyncio.sleep(0.1)
            async with aio.shield():
                await asyncio.sleep(0.1)
            return "handled"

    return aio.run(main())


@task
def handling_limit(self):
    async def main():
        begin(self)
        await asyncio.sleep(LONG)

    try:
        aio.run(main())
    except ShutdownTimeLimit:
        return "handled"


@task
def ending(self):
    """Nothing comes in between."""

    async def main():
        async with aio.interruptible(), aio.shield():
            await aio.sleep(0.01)
        return "done"

    return [aio.run(main()), async_to_sync(main)()]
