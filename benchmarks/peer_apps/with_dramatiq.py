"""dramatiq: acknowledges after the run."""

from __future__ import annotations

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.peer_apps.ran import URL, work

dramatiq.set_broker(RedisBroker(url=URL))
task = dramatiq.actor(work, max_retries=0)


def send_all(numbers, seconds, clock):
    for number in numbers:
        task.send(number, seconds)
        if number == numbers[0]:
            began = clock()
    return clock() - began
