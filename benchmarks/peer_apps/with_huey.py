"""huey: what is fetched is nowhere else."""

from __future__ import annotations

from huey import RedisHuey

from benchmarks.peer_apps.ran import URL, work

huey = RedisHuey("peers", url=URL, results=False)
task = huey.task()(work)


def send_all(numbers, seconds, clock):
    for number in numbers:
        task(number, seconds)
        if number == numbers[0]:
            began = clock()
    return clock() - began
