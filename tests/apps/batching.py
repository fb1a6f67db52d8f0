"""A task with a strategy of its own, as celery-batches has: many messages, one call of the pool."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

from celery.app.task import Task
from celery.utils.imports import symbol_by_name
from celery.worker.request import create_request_cls

from celery_graceful import Graceful
from tests.apps import make_app, say, swallow

app = make_app("batching")
Graceful(app)

#: How many make a batch.
FULL = 3


def run_batch(task, batch):
    for _ in (0,):
        task([one.id for one in batch])


class Batching(Task):
    abstract = True

    def __init__(self):
        self.buffer = []

    def Strategy(self, task, app, consumer):
        self.pool = consumer.pool
        Request = create_request_cls(
            symbol_by_name(task.Request), task, consumer.pool, consumer.hostname, None, app=app
        )

        def handle(message, body, ack, reject, callbacks):
            request = Request(
                message, on_ack=ack, on_reject=reject, app=app, task=task, headers=message.headers
            )
            self.buffer.append(request)
            say("buffered", request.id)
            if len(self.buffer) >= FULL:
                self.flush()

        consumer.timer.call_repeatedly(0.1, self.flush_if_asked)
        return handle

    def flush_if_asked(self):
        if os.path.exists(os.environ["FLUSH"]) and self.buffer:
            say("flushed", len(self.buffer))
            self.flush()

    def flush(self):
        batch, self.buffer = self.buffer, []

        def on_accepted(pid, time_accepted):
            for request in batch if not self.acks_late else ():
                request.acknowledge()

        def on_return(result):
            for request in batch if self.acks_late else ():
                request.acknowledge()

        simple = [SimpleNamespace(id=request.id) for request in batch]
        self.pool.apply_async(
            run_batch, (self, simple), accept_callback=on_accepted, callback=on_return
        )


def run(ids):
    say("ran", *ids)
    if os.path.exists(os.environ["HOLD"]):
        say("holds")
        swallow(lambda: None, lambda: not os.path.exists(os.environ["HOLD"]))
        time.sleep(0)
    say("ended", *ids)


@app.task(base=Batching, name="late", acks_late=True)
def late(ids):
    run(ids)


@app.task(base=Batching, name="early")
def early(ids):
    run(ids)
