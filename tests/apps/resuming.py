"""Tasks that save something, and end in every way there is."""

from __future__ import annotations

import os

from celery.exceptions import Ignore

from celery_graceful import Graceful, GracefulTask
from celery_graceful.checkpoints import checkpoint
from tests.apps import make_app, say

checkpoint.YIELD = float(os.environ.get("YIELD", checkpoint.YIELD))

app = make_app("resuming")
Graceful(app)
task = app.task(base=GracefulTask, bind=True)


@task
def ending(self, how):
    """Saves a state, and ends."""
    self.checkpoint({"how": how})
    say("saved", how)
    if how == "failure":
        raise ValueError(how)
    if how == "ignore":
        raise Ignore
    if how == "retry" and not self.request.retries:
        raise self.retry(countdown=0)
    if how == "retry, and return" and not self.request.retries:
        self.retry(countdown=1, throw=False)
    if how in ("terminate", "time limit"):
        with self.shield():
            self.wait_for_interrupt(120)
    return self.resumed


class AsksEarly(GracefulTask):
    """Looks at what was saved before its run begins."""

    def before_start(self, *_):
        say("before", self.state, self.resumed, self.interruptions)
        self.state = (self.state or 0) + 10


@app.task(base=AsksEarly, bind=True)
def asks_early(self):
    """Fails once in the middle of a loop."""
    for item in self.iterate(range(3), every=1):
        say("item", item)
        self.state += 1
        if item == 1 and not self.request.retries:
            raise self.retry(countdown=0)
    return self.state


@task
def twin(self, how):
    """One of two of the same id."""
    self.step("charge", say, "charged")
    if how == "stays" and not self.interruptions:
        say("stays")
        self.sleep(120)


@task
def again(self):
    resumed = self.resumed
    self.checkpoint("saved")
    say("again, resumed:", resumed)


@task
def pages(self, page, last):
    """One after the other, each in the place of the one before."""
    for item in self.iterate(range(3)):
        say("item", page, item)
    if page < last:
        raise self.replace(self.si(page + 1, last))
    return self.resumed


@app.task(base=GracefulTask, bind=True, max_run_time=0.05)
def long(self, seconds):
    """Counts milliseconds."""
    for number in self.iterate(range(int(seconds * 1000))):
        self.wait_for_interrupt(0.001)
        if not number:
            say("long began")
    say("long ended", self.interruptions)


@app.task(base=GracefulTask, bind=True, max_run_time=0.05, acks_late=False)
def early(self, most):
    """What is sent again is a copy: its broker does not say that it was delivered before."""
    for _ in self.iterate(range(most), every=1):
        self.wait_for_interrupt(0.02)


@task
def count(self, most):
    """Saves each number, fifty a second."""
    for _ in self.iterate(range(most), every=1):
        self.wait_for_interrupt(0.02)


@task
def short(self, number):
    say("short", number)


@app.task(base=GracefulTask, bind=True, max_interruptions=0)
def touchy(self):
    say("touchy", os.getpid())
    self.sleep(120)


@app.task(base=GracefulTask, bind=True, max_interruptions=0)
def stubborn(self):
    """Does not stop, so the hard deadline takes it away."""
    say("stubborn")
    with self.shield():
        while True:
            self.wait_for_interrupt(120)


@app.task
def errback(request, exc, traceback):
    say("errback", type(exc).__name__, exc)


@task
def rows(self, most):
    """One after the other, slowly; what is done is saved when it is stopped."""
    for row in self.iterate(range(most)):
        if row == 1:
            say("rows")
        self.sleep(0.3)
