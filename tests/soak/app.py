"""Tasks of every kind that write down when they end, and how.

With SOAK_NEW in the environment it is the new version of the code, which has one task more.
"""

from __future__ import annotations

import os
import time

from celery import signals

from celery_graceful import Graceful, GracefulTask
from celery_graceful.system import native
from tests.apps import make_app, say

app = make_app("soak")
app.conf.update(graceful_grace_period=10.0, result_expires=600, worker_prefetch_multiplier=4)
Graceful(app)


@signals.worker_ready.connect
def on_ready(**_):
    say("READY")


@signals.task_failure.connect
def on_failure(task_id=None, exception=None, sender=None, **_):
    note("F", task_id, f"{sender.name}: {exception!r}")


def note(kind, task_id, text=""):
    """One line, one write."""
    global _fd
    if _fd is None:
        _fd = os.open(os.environ["SOAK_JOURNAL"], os.O_WRONLY | os.O_APPEND)
    line = f"{kind} {task_id} {text}\n".encode()
    native.original("os", "write")(_fd, line)


_fd = None


def ends(self, result):
    note("E", self.request.id, self.name)
    return result


@app.task(base=GracefulTask, bind=True)
def work(self, *args, seconds=0.1):
    self.sleep(seconds)
    return ends(self, sum(x for arg in args for x in (arg if isinstance(arg, list) else [arg])))


@app.task(base=GracefulTask, bind=True)
def stubborn(self, seconds=0.5):
    """Looks at no interrupt: it has to end within the drain."""
    time.sleep(seconds)
    return ends(self, 1)


@app.task(base=GracefulTask, bind=True)
def loop(self, items=20):
    """Goes on where it stopped; each row is done once."""
    for item in self.iterate(range(items)):
        with self.shield():
            note("R", self.request.id, str(item))
            self.sleep(0.05)
    return ends(self, items)


@app.task(base=GracefulTask, bind=True, max_retries=5)
def tries(self, times=2):
    self.sleep(0.05)
    if self.request.retries < times:
        raise self.retry(countdown=0.3)
    return ends(self, 1)


@app.task(bind=True, acks_late=True)
def plain(self, seconds=0.05):
    return ends(self, 1)


@app.task(base=GracefulTask, bind=True)
def called(self, summary):
    """A callback of a batch."""
    note("C", summary["id"], self.request.id)


if "SOAK_NEW" in os.environ:

    @app.task(base=GracefulTask, bind=True)
    def new(self):
        self.sleep(0.05)
        return ends(self, 1)
