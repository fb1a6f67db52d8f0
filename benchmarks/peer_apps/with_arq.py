"""arq: coroutines; acknowledges after the run."""

from __future__ import annotations

import asyncio

from arq import create_pool
from arq.connections import RedisSettings

from benchmarks.peer_apps.ran import URL, note

SERVER = RedisSettings.from_dsn(URL)


async def work(_, number, seconds):
    if seconds:
        await asyncio.sleep(seconds)
    note(number)


class Settings:
    functions = (work,)
    redis_settings = SERVER
    max_jobs = 10
    keep_result = 0


def send_all(numbers, seconds, clock):
    async def send():
        pool = await create_pool(SERVER)
        for number in numbers:
            await pool.enqueue_job("work", number, seconds)
            if number == numbers[0]:
                began = clock()
        return clock() - began

    return asyncio.run(send())
