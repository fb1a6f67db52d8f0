"""The tasks of `untold`, on a worker whose loop does not hear what its pool says, for a while."""

from __future__ import annotations

import os

from celery import signals

from tests.apps import say, wait_for_file
from tests.apps.untold import app


@app.task(name="take", acks_late=True)
def take(text):
    """Has an argument of any size."""
    say("took", os.getpid(), len(text))
    return len(text)


@app.task(name="deafen")
def deafen(path):
    """Whoever receives it does nothing else until the file is there."""


@signals.task_received.connect
def hear_nothing(request, **_):
    if request.name == "deafen":
        say("deaf", request.id)
        wait_for_file(request.args[0])
