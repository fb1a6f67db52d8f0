"""Tasks whose end something has to be sent or stored for."""

from __future__ import annotations

import os
import signal

from celery import signals
from celery.exceptions import Reject
from celery.result import allow_join_result

from celery_graceful import Graceful, GracefulTask
from celery_graceful.deliveries import late_results
from tests.apps import make_app, say, wait_for_file

if "MOST" in os.environ:
    late_results.MOST = int(os.environ["MOST"])
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


MONITOR = {"monitor": "steady"} if "CONF_graceful_healthchecks_url" in os.environ else {}


@app.task(name="steady", base=GracefulTask, **MONITOR)
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


@app.task(name="fails_then")
def fails_then(request, exc, traceback):
    say("failed", request.id, repr(exc))


@app.task(name="dies")
def dies(path):
    ends("dies", path)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="rejects", acks_late=True)
def rejects(path):
    raise Reject(ends("rejects", path), requeue=False)


if "TELLS" in os.environ:

    @signals.task_failure.connect(weak=False)
    def on_failure(task_id, exception, **_):
        say("told of failure", task_id, type(exception).__name__)

    @signals.task_revoked.connect(weak=False)
    def on_revoked(request, **_):
        say("told of revoked", request.id)


@app.task(name="of_its_own_class", acks_late=True)
def of_its_own_class(path):
    """Its result is of a class that its process alone knows."""
    global Own
    Own = type("Own", (), {"__module__": __name__})
    ends("of_its_own_class", path)
    return Own()


@app.task(name="asks", acks_late=True)
def asks(path):
    with allow_join_result():
        follows.delay("something")  # from now on it listens for what ends
        ends("asks", path)
        sent = follows.delay("asked for")
        say("sent")
        wait_for_file(f"{path} on")
        return sent.get(timeout=60)


@app.task(name="all_done", acks_late=True)
def all_done(*args):
    say("all done", *args)
