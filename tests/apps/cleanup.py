"""Exit callbacks and resources that say when they run, among them two that make trouble.

Environment: FAIL=1 lets the worker fail at start-up, after its pool has started.
"""

from __future__ import annotations

import os
import sys
import time

from celery import beat, bootsteps, signals

from celery_graceful import Graceful, GracefulTask
from tests.apps import make_app, say

app = make_app("cleanup")
graceful = Graceful(app)


@graceful.resource
def client():
    say("OPEN", "client", os.getpid())
    yield object()
    say("CLOSE", "client", os.getpid())


@graceful.resource
def db():
    connection = (client.get(), object())
    say("OPEN", "db", os.getpid())
    yield connection
    say("CLOSE", "db", os.getpid())


def told(name):
    say("EXIT", name, os.getpid())


graceful.on_exit(told, "worker-first", scope="worker")
graceful.on_exit(told, "process-first")
graceful.on_exit(told, "everywhere", scope="everywhere")
graceful.on_exit(told, "cancelled", scope="everywhere").cancel()


@graceful.on_exit(scope="everywhere")
def raises():
    told("raises")
    raise ValueError("as it shall")


@graceful.on_exit(scope="everywhere", timeout=0.5)
def hangs():
    told("hangs")
    while True:
        time.sleep(3600)


@graceful.on_exit
def process_last():
    with db() as connection:  # resources are still open
        assert connection is db.get()
    told("process-last")


graceful.on_exit(told, "worker-last", scope="worker")


@signals.worker_process_init.connect
def started(**_):
    say("CHILD", "started", os.getpid())


@signals.beat_init.connect
def beat_started(**_):
    say("BEAT", "started", os.getpid())


class Swallows(beat.Scheduler):
    """As libraries do that beat is in the middle of when it is told to end."""

    def tick(self, *args, **kwargs):
        try:
            say("BEAT", "ticks", os.getpid())
            while True:  # of a signal that comes just before a long sleep Python hears after it
                time.sleep(0.05)
        except BaseException:
            return 3600.0


@app.task(base=GracefulTask, bind=True)
def work(self, name):
    """Goes on for as long as the worker does, and a bit longer."""
    with db():
        say("TASK", name, os.getpid())
        self.wait_for_interrupt()
        time.sleep(0.1)
        say("TASK", name, os.getpid())


@app.task(base=GracefulTask)
def touch():
    with db():
        say("TASK", "touch", os.getpid())


@app.task(base=GracefulTask, bind=True)
def both(self, count):
    """Waits until so many of these run at the same time."""
    with db(), self.app.connection_for_write() as connection:
        redis = connection.default_channel.client
        redis.incr("both")
        say("TASK", "both", os.getpid())
        while int(redis.get("both")) < count:
            self.wait_for_interrupt(0.02)


@app.task(base=GracefulTask)
def stuck():
    """Deaf to everything."""
    say("TASK", "stuck", os.getpid())
    while True:
        try:
            time.sleep(0.05)
        except BaseException:
            pass


class Fails(bootsteps.StartStopStep):
    requires = ("celery.worker.components:Pool",)

    def start(self, worker):
        raise RuntimeError("cannot start")


if os.environ.get("FAIL"):
    app.steps["worker"].add(Fails)

if __name__ == "__main__":  # a script
    db.get()
    say("TASK", "script", os.getpid())
    sys.exit(3)
