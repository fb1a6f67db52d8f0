"""Tasks that fail, with Sentry's SDK: whose frames come first?"""

from __future__ import annotations

from celery_graceful import Graceful, GracefulTask
from tests.apps import make_app, sentry

app = make_app("failing")
app.conf.result_extended = True
Graceful(app)

sentry.init()


class OwnCall(GracefulTask):
    abstract = True

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


class Hooked(GracefulTask):
    abstract = True

    def on_resumed(self, state):
        """There is a frame of ours for it."""


def helper():
    raise LookupError("of the task")


@app.task(base=GracefulTask)
def graceful():
    helper()


@app.task(base=Hooked)
def hooked():
    helper()


@app.task(base=OwnCall)
def own_call():
    helper()


@app.task(base=GracefulTask, autoretry_for=(LookupError,), max_retries=0)
def retried():
    helper()


@app.task(base=GracefulTask, bind=True)
def interruptible(self):
    with self.interruptible(), self.shield():
        helper()


@app.task(base=GracefulTask, bind=True)
def looping(self):
    for _ in self.iterate([1]):
        helper()


@app.task
def plain_early():
    helper()


@app.task(acks_late=True)
def plain_late():
    helper()
