"""A worker that is measured: a loop with checkpoints, and a monitor that somebody takes."""

from __future__ import annotations

import os

from celery_graceful import Graceful, GracefulTask
from tests.apps import make_app, say, wait_for_file

app = make_app("measured")
Graceful(app)


@app.task(base=GracefulTask, bind=True, monitor="rows")
def rows(self, path, total=10):
    """Rows; at the third it waits for the file, or to be interrupted."""
    for row in self.iterate(range(total), name="rows", every=1):
        if row == 3 and not os.path.exists(path):
            say("row 3 in", os.getpid())
            self.wait_for_interrupt(120)


@app.task(base=GracefulTask)
def stubborn(path):
    """Hears of nothing."""
    say("stubborn in", os.getpid())
    wait_for_file(path)
