"""Old code and new code: only the new one (KNOWS) has the task that is sent."""

from __future__ import annotations

import os
from functools import partial

from celery import signals

from celery_graceful import Graceful, GracefulTask
from tests.apps import make_app, quorum_queues, say, wait_for_file

app = make_app("rolling")
if "QUORUM" in os.environ:
    app.conf.task_queues = quorum_queues()
    app.conf.worker_detect_quorum_queues = True
if "PLAIN" not in os.environ:
    Graceful(app)
task = partial(app.task, base=GracefulTask if "PLAIN" not in os.environ else None, bind=True)


def ran(self, *args):
    info = self.request.delivery_info
    say("ran", self.request.id, self.request.eta, self.request.expires, info["priority"])
    say("headers", self.request.id, getattr(self.request, "marked", None))
    return self.request.id


if "KNOWS" in os.environ:
    task(name="new")(ran)
    task(name="new_early", acks_late=False)(ran)


@task(name="old")
def old(self):
    say("ran", self.request.id)
    return self.request.id


@task(name="gated")
def gated(self, path):
    say("started", self.request.id)
    wait_for_file(path)


@signals.task_unknown.connect
def on_unknown(name, id, **_):
    say("unknown", name, id)


@signals.task_rejected.connect
def on_rejected(message, **_):
    say("rejected", message is not None)
