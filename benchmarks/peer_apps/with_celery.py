"""Celery, with and without celery_graceful."""

from __future__ import annotations

import os

from celery import Celery

from benchmarks.peer_apps.ran import URL, work

app = Celery("peers", broker=URL)
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_acks_late=True,
    task_ignore_result=True,
    worker_redirect_stdouts=False,
)
if not os.environ.get("BENCH_PLAIN"):
    from celery_graceful import Graceful

    Graceful(app)
task = app.task(work, name="work")


def send_all(numbers, seconds, clock):
    for number in numbers:
        task.delay(number, seconds)
        if number == numbers[0]:
            began = clock()
    return clock() - began
