"""Members of batches and chords, some of which are lost. With PLAIN set it is plain Celery."""

from __future__ import annotations

import os
import time
import uuid

from celery import Task

from celery_graceful import Graceful, GracefulTask
from tests.apps import make_app, say, wait_for_file

app = make_app("ghost")
if "PLAIN" not in os.environ:
    Graceful(app)
app.conf.task_acks_late = True
base = Task if "PLAIN" in os.environ else GracefulTask


@app.task(base=base, bind=True, name="ghost.hold")
def hold(self, gate=None):
    """Each run has a result of its own."""
    say("started", self.request.id)
    if gate is not None:
        wait_for_file(gate)
    say("ended", self.request.id)
    return uuid.uuid4().hex


@app.task(base=Task, bind=True, name="ghost.hold_early", acks_late=False)
def hold_early(self, gate):
    """Nothing at the broker tells of it while it runs."""
    say("started", self.request.id)
    wait_for_file(gate)
    say("ended", self.request.id)


@app.task(base=base, name="ghost.nap")
def nap(seconds):
    time.sleep(seconds)


@app.task(base=base, name="ghost.total")
def total(results):
    say("total", len(results))
    return len(results)


@app.task(base=base, name="ghost.called")
def called(summary, what="called"):
    say(what, summary["id"], summary["succeeded"], summary["failed"])
