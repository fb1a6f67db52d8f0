"""A worker whose loop does not hear what its pool says, for a while."""

from __future__ import annotations

from celery import signals

from celery_graceful import Graceful
from tests.apps import make_app, say, wait_for_file

app = make_app("deaf")
Graceful(app)


def _work(name: str, path: str) -> str:
    say("started", name)
    wait_for_file(path)
    say("ended", name)
    return name


@app.task(name="late", acks_late=True)
def late(path):
    return _work("late", path)


@app.task(name="early")
def early(path):
    return _work("early", path)


@app.task(name="deafen")
def deafen(path):
    """Whoever receives it does nothing else until the file is there."""


@signals.task_received.connect
def hear_nothing(request, **_):
    if request.name == "deafen":
        say("deaf", request.id)
        wait_for_file(request.args[0])
