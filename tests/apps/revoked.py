"""Tasks that are revoked while they run."""

from __future__ import annotations

import os
import time
from functools import partial

from celery import signals

from celery_graceful import Graceful, GracefulTask, Interrupted
from tests.apps import make_app, say, swallow, wait_for_file, work

app = make_app("revoked")
Graceful(app)

LONG = 60.0


class Reporting(GracefulTask):
    def on_interrupted(self, interrupt):
        say("hook", self.request.id, interrupt.reason, round(interrupt.time_left(), 1))


task = partial(app.task, base=Reporting, bind=True)


@signals.task_revoked.connect
def tell(request, terminated, signum, expired, **_):
    say("revoked", request.id, terminated, int(signum), expired)


def begin(self):
    say("started", self.request.id, os.getpid())


@task()
def cooperative(self):
    begin(self)
    self.sleep(LONG)


@task()
def iterating(self):
    for row in self.iterate(range(100_000), every=1):
        if row == 5:
            begin(self)
        self.wait_for_interrupt(0.01)


@task()
def unaware(self):
    try:
        begin(self)
        work(LONG)
    except Exception:
        say("NOT REACHED", self.request.id)
    finally:
        say("unwound", self.request.id)


@task()
def shielded(self, gate):
    with self.shield():
        begin(self)
        seen = None
        while not os.path.exists(gate):
            reason = self.interrupt and self.interrupt.reason
            if reason != seen:
                say("sees", self.request.id, reason)
            seen = reason
            time.sleep(0.01)
        say("written", self.request.id)
    say("NOT REACHED", self.request.id)


@task()
def handling(self):
    try:
        begin(self)
        work(LONG)
    except Interrupted as exc:
        return str(exc.interrupt.reason)


@task()
def calling(self):
    def cancel(interrupt):  # in another thread
        say("cancelled", "calling", interrupt.reason)

    with self.interrupt_callback(cancel):
        begin(self)
        self.sleep(LONG)


@task()
def swallowing(self, gate):
    swallow(
        lambda: begin(self),
        lambda: os.path.exists(gate),
        lambda: say("swallowed", self.request.id),
    )


@task()
def failing(self):
    try:
        begin(self)
        work(LONG)
    except BaseException as exc:
        raise ValueError("wrapped") from exc


@task()
def bystander(self, gate):
    """Nobody has revoked this one."""
    begin(self)
    while not os.path.exists(gate):
        if self.interrupted or self.wait_for_interrupt(0.01):
            say("NOT REACHED", self.request.id)
    self.checkpoint("done")
    return "finished"


class Overtaken(Reporting):
    """Its next try runs before this one has ended."""

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        wait_for_file(args[0])


@app.task(base=Overtaken, bind=True, max_retries=1)
def overtaken(self, gate):
    begin(self)
    if not self.request.retries:
        raise self.retry(countdown=0)
    open(gate, "w").close()
    self.sleep(LONG)


@app.task(bind=True)
def plain(self):
    begin(self)
    work(LONG)
