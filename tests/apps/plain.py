"""A plain app with the plugin: no task of it knows of celery_graceful."""

from __future__ import annotations

import json
import os
import time

from celery import signals
from celery.exceptions import SoftTimeLimitExceeded
from celery.worker.request import Request

from celery_graceful import Graceful
from tests.apps import make_app, say, wait_for_file

app = make_app("plain")
graceful = Graceful(app)
if "TWICE" in os.environ:
    again = Graceful(app)

LONG = 60.0


def wait(name: str) -> None:
    say("started", name)
    if "SECOND" in os.environ:
        return
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        time.sleep(0.02)


def until_stopping() -> None:
    """Until the test has seen that the worker stops, where it looks for that."""
    if "GATE" in os.environ:
        wait_for_file(os.environ["GATE"])


@app.task(name="early")
def early():
    wait("early")


@app.task(name="early_handles")
def early_handles():
    try:
        wait("early_handles")
    except SoftTimeLimitExceeded as exc:
        say("handled", type(exc).__name__)
    return "handled"


@app.task(name="early_ignores", priority=3)
def early_ignores():
    while True:
        try:
            wait("early_ignores")
            break
        except Exception as exc:
            say("ignored", type(exc).__name__)


@app.task(name="late", acks_late=True)
def late():
    try:
        wait("late")
    except BaseException as exc:
        say("NOT LEFT ALONE", type(exc).__name__)
        raise


@app.task(name="short")
def short():
    say("started", "short")
    until_stopping()
    return "short"


class LoudRequest(Request):
    """A request class of the user's own."""

    def on_accepted(self, pid, time_accepted):
        say("accepted", self.name)
        super().on_accepted(pid, time_accepted)

    def on_success(self, failed__retval__runtime, **kwargs):
        say("succeeded", self.name)
        return super().on_success(failed__retval__runtime, **kwargs)

    def on_failure(self, exc_info, send_failed_event=True, return_ok=False):
        say("failed", self.name)
        return super().on_failure(exc_info, send_failed_event, return_ok)


@app.task(name="loud", Request=LoudRequest)
def loud():
    say("started", "loud")
    until_stopping()


@app.task(name="loud_by_name", Request="tests.apps.plain:LoudRequest")
def loud_by_name():
    say("started", "loud_by_name")
    until_stopping()
    raise LookupError


class SealedRequest(Request):
    """Opens what its messages carry."""

    def __init__(self, message, **options):
        args, kwargs, embed = message.payload
        super().__init__(message, **options)
        self._body = json.dumps([[word[::-1] for word in args], kwargs, embed])


@app.task(name="sealed", Request=SealedRequest)
def sealed(*args):
    say("given", *args)


@app.task(name="scrubbed")
def scrubbed(user, *, password):
    say("given", user, password)


@signals.task_received.connect
def scrub(request, **_):
    """For who logs requests: what a task is given is something else."""
    if request.name == "scrubbed":
        request.args.append("and more")
        request.kwargs["password"] = "***"
