"""Tasks that are given up; where they stand is asked from the soft deadline on, without haste."""

from __future__ import annotations

import time

from celery_graceful import Graceful, GracefulTask
from celery_graceful.pools import prefork
from celery_graceful.worker import last_stacks
from tests.apps import make_app, say

last_stacks.LEAD, last_stacks.SHARE = 3000.0, 1.0
prefork.PATIENCE = 3000.0

app = make_app("standing")
Graceful(app)


@app.task(base=GracefulTask, bind=True)
def stands(self, name):
    with self.shield():
        stand_still()


def stand_still():
    say("stands")
    while True:
        time.sleep(0.05)
