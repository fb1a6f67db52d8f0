"""taskiq: over a list without acknowledgements, or a stream with them."""

from __future__ import annotations

import asyncio
import os

from taskiq_redis import ListQueueBroker, RedisStreamBroker

from benchmarks.peer_apps.ran import URL, note

kind = RedisStreamBroker if os.environ.get("BENCH_STREAM") else ListQueueBroker
#: Without a limit: where an answer does not come in time, the list broker loses a message.
broker = kind(URL, socket_timeout=None)


async def work(number, seconds):
    if seconds:
        await asyncio.sleep(seconds)
    note(number)


task = broker.task(task_name="work")(work)


def send_all(numbers, seconds, clock):
    async def send():
        await broker.startup()
        for number in numbers:
            await task.kiq(number, seconds)
            if number == numbers[0]:
                began = clock()
        took = clock() - began
        await broker.shutdown()
        return took

    return asyncio.run(send())
