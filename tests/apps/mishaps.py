"""Something raises in the worker between a task's end and its acknowledgement.

The name of a task says where: in Celery's books, in a class of requests, in what sends events or
stores results, in a filter of the log.
"""

from __future__ import annotations

import logging
import os
import time

from celery.events.dispatcher import EventDispatcher
from celery.exceptions import Reject
from celery.utils.collections import LimitedSet
from celery.worker import state
from celery.worker.request import Request

from celery_graceful import Graceful, GracefulTask
from tests.apps import make_app, say

app = make_app("mishaps")
app.conf.worker_send_task_events = True
Graceful(app)


#: Seconds. It begins before the task can say that it has: on a busy machine long before.
LIMIT = 12


class Mishap(Exception):
    pass


class Raising(Request):
    """A user's class of requests, whose every method raises before or after Celery's."""

    def on_accepted(self, pid, time_accepted):
        super().on_accepted(pid, time_accepted)
        if self.name == "accepted":
            raise Mishap

    def on_failure(self, exc_info, send_failed_event=True, return_ok=False):
        if self.name == "after":
            super().on_failure(exc_info, send_failed_event, return_ok)
        raise Mishap

    def on_retry(self, exc_info):
        raise Mishap

    def on_timeout(self, soft, timeout):
        raise Mishap


class Base(GracefulTask):
    Request = Raising


def task(name, **options):
    return app.task(bind=True, base=Base, name=name, **options)


def begin(self):
    say(f"ran {self.name}")
    self.checkpoint("begun")


@task("books")
def books(self):
    begin(self)


@task("event")
def event(self):
    begin(self)


@task("accepted")
def accepted(self):
    begin(self)


@task("fails")
def fails(self):
    begin(self)
    raise LookupError


@task("after")
def after(self):
    begin(self)
    raise LookupError


@task("memory")
def memory(self):
    begin(self)
    raise MemoryError


@task("retried")
def retried(self):
    begin(self)
    if not self.request.retries:
        raise self.retry(countdown=0)


@task("rejected")
def rejected(self):
    begin(self)
    raise Reject("for good", requeue=False)


@task("goes_back")
def goes_back(self):
    begin(self)
    if not self.request.delivery_info["redelivered"]:
        raise Reject("once more", requeue=True)


@task("early", acks_late=False)
def early(self):
    begin(self)
    raise LookupError


@task("revoked")
def revoked(self):
    begin(self)


@task("dies")
def dies(self):
    begin(self)
    if not self.request.delivery_info["redelivered"]:
        os.kill(os.getpid(), 9)


@task("limited", time_limit=LIMIT)
def limited(self):
    begin(self)
    time.sleep(60)


@app.task(bind=True, base=GracefulTask, name="filtered", time_limit=LIMIT)
def filtered(self):
    begin(self)
    time.sleep(60)


class Filter(logging.Filter):
    def filter(self, record):
        if "Hard time limit" in record.getMessage() and "filtered" in record.getMessage():
            raise Mishap
        return True


logging.getLogger("celery.worker.request").addFilter(Filter())

_send = EventDispatcher.send


class Books(LimitedSet):
    """Somebody's own."""

    def add(self, item, now=None):
        if str(item).startswith("books"):
            raise RuntimeError("dictionary changed size during iteration")
        super().add(item, now)


def send(self, type, *args, **fields):
    if str(fields.get("uuid")).startswith("event") and type != "task-received":
        raise Mishap
    return _send(self, type, *args, **fields)


def mark_as_revoked(*args, **kwargs):
    raise Mishap


EventDispatcher.send = send
state.successful_requests.__class__ = Books
app.backend.mark_as_revoked = mark_as_revoked
