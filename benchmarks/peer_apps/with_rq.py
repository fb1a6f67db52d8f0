"""RQ: a process a job."""

from __future__ import annotations

import redis
import rq

from benchmarks.peer_apps.ran import URL, work


def send_all(numbers, seconds, clock):
    queue = rq.Queue(connection=redis.Redis.from_url(URL))
    for number in numbers:
        queue.enqueue(work, number, seconds, result_ttl=0)
        if number == numbers[0]:
            began = clock()
    return clock() - began
