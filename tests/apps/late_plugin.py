"""What `tests.apps.late` gets to know later."""

from __future__ import annotations

from celery_graceful import GracefulTask
from tests.apps import say, wait_for_file
from tests.apps.late import app


@app.task(name="late", base=GracefulTask, bind=True)
def late(self, path):
    say("started", self.request.id)
    wait_for_file(path)
    self.sleep(0)
    say("ended", self.request.id)
    return self.request.id


@app.task(name="sleeping", base=GracefulTask, bind=True)
def sleeping(self, seconds):
    say("started", self.request.id)
    self.sleep(seconds)
    say("ended", self.request.id)
    return self.request.id


@app.task(name="by_hand", acks_late=True, bind=True)
def by_hand(self, path):
    say("started", self.request.id)
    wait_for_file(path)
    say("ended", self.request.id)
    return self.request.id
