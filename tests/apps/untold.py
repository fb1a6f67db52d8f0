"""Tasks whose end something has to be sent or stored for."""

from __future__ import annotations

from celery_graceful import Graceful, GracefulTask
from tests.apps import make_app, say, wait_for_file

app = make_app("untold")
Graceful(app)


def ends(name: str, path: str) -> str:
    say("started", name)
    wait_for_file(path)
    say("ended", name)
    return name


@app.task(name="late", acks_late=True)
def late(path):
    return ends("late", path)


@app.task(name="early")
def early(path):
    return ends("early", path)


@app.task(name="steady", base=GracefulTask)
def steady(path):
    return ends("steady", path)


@app.task(name="failing", acks_late=True)
def failing(path):
    raise ValueError(ends("failing", path))


@app.task(name="trying", bind=True, acks_late=True)
def trying(self, path):
    if self.request.retries:
        return self.request.retries
    raise self.retry(exc=ValueError(ends("trying", path)), countdown=0)


@app.task(name="follows", acks_late=True)
def follows(before):
    say("follows", before)
    return before
