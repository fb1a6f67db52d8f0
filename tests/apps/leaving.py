"""Who wants to know that a worker ends: an exit handler, a receiver of `worker_shutdown`."""

from __future__ import annotations

import atexit
import os
import threading
import time

from celery.signals import worker_init, worker_shutdown

from celery_graceful import GracefulTask
from tests.apps import say, take_time_to_leave, wait_for_file
from tests.apps.lifecycle import app

__all__ = ["app"]

runs = threading.Event()
take_time_to_leave()


@app.task(base=GracefulTask, bind=True)
def held(self, path):
    """Holds up a stop until there is a file, and ends at once when there is."""
    say("started held", self.request.id)
    with self.shield():
        self.wait_for_interrupt(120)
        wait_for_file(path)


@worker_init.connect
def on_init(**_):
    atexit.register(on_exit)
    if "LATE_END" in os.environ:  # the interpreter waits for such threads before its own end
        threading.Thread(target=runs.wait).start()


def on_exit():
    say("exit handler")
    runs.set()
    if "LATE_END" in os.environ:
        time.sleep(0.3)  # in which the main thread comes too


@worker_shutdown.connect
def on_shutdown(**_):
    say("worker_shutdown")
