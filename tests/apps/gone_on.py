"""Tasks that have sent what goes on in their place, and are held up before they can say so."""

from __future__ import annotations

import os
from functools import partial

from celery import signals, states

from celery_graceful import Graceful, GracefulTask
from tests.apps import make_app, say, wait_for_file

app = make_app("gone_on")
Graceful(app)
task = partial(app.task, base=GracefulTask, bind=True)


@task(name="again")
def again(self):
    say("started again", self.request.retries)
    if not self.request.retries:
        raise self.retry(countdown=0, queue="later")
    return "done"


@task(name="replaced")
def replaced(self):
    say("started replaced")
    raise self.replace(app.signature("other", queue="later"))


@task(name="other")
def other(self):
    say("started other")


@task(name="unsent")
def unsent(self):
    """Its retry cannot be sent: it has none."""
    say("started unsent")
    raise self.retry(countdown=0, serializer="none of that name")


@signals.task_postrun.connect
def hold_up(task_id, state, **_):
    if state in (states.RETRY, states.IGNORED, states.REJECTED):
        say("held up", os.getpid())
        wait_for_file(os.environ["GATE"])


@signals.task_failure.connect
def told(task_id, exception, **_):
    say("told of failure", type(exception).__name__)
