"""A task, and messages for it that cannot be used."""

from __future__ import annotations

import os

from celery import signals

from celery_graceful import Graceful, GracefulTask
from tests.apps import make_app, say

app = make_app("unusable")
if "PLAIN" not in os.environ:
    Graceful(app)


@app.task(name="known", base=GracefulTask if "PLAIN" not in os.environ else None)
def known(*args, **kwargs):
    pass


@app.task(name="neighbour", bind=True)
def neighbour(self):
    say("neighbour", self.request.id)
    return self.request.id


@signals.task_rejected.connect
def on_rejected(message, **_):
    say("rejected", type(message).__name__)
