"""Tasks that take their process with them."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from functools import partial

from celery_graceful import Graceful, GracefulTask
from celery_graceful.deliveries import requeue
from celery_graceful.membership import events
from celery_graceful.poison import deaths, post_mortem
from celery_graceful.signals import task_quarantined
from tests.apps import make_app, quorum_queues, say, wait_for_file

app = make_app("poison")
if "QUORUM" in os.environ:
    app.conf.task_queues = quorum_queues()
    app.conf.worker_detect_quorum_queues = True
Graceful(app)
deaths.EVENT_TIMEOUT = 20.0  # events that are not sent in time are lost
events.AHEAD = events.TIMEOUT = 20.0
if "COPY_AFTER" in os.environ:
    requeue.COPY_AFTER = int(os.environ["COPY_AFTER"])
if "HOLD" in os.environ:
    post_mortem.HOLD = float(os.environ["HOLD"])
task = partial(app.task, base=GracefulTask, bind=True)


def die(how):
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "group":
        os.killpg(0, signal.SIGKILL)
    elif how == "exit":
        os._exit(3)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "system_exit":
        raise SystemExit(1)


@task()
def dying(self, how, after=0.0):
    """Dies each time."""
    say("started", self.request.id)
    time.sleep(after)
    die(how)


@app.task(bind=True)
def dying_early(self):
    """Acknowledged before it runs."""
    say("started", self.request.id)
    die("exit")


@task()
def waiting(self, seconds):
    """Ends by itself, or at an interrupt."""
    say("started", self.request.id)
    self.sleep(seconds)
    say("ended", self.request.id)
    return self.request.id


@task()
def waiting_for(self, path):
    """Ends when there is a file, or at an interrupt."""
    say("started", self.request.id)
    while not os.path.exists(path):
        self.sleep(0.02)
    say("ended", self.request.id)
    return self.request.id


@task()
def stubborn(self, seconds):
    """Ends by itself alone."""
    say("started", self.request.id)
    time.sleep(seconds)
    say("ended", self.request.id)
    return self.request.id


@task()
def gated(self, path):
    """Ends when there is a file, whatever comes."""
    say("started", self.request.id)
    wait_for_file(path)
    say("ended", self.request.id)
    return self.request.id


@task(rate_limit="1/h")
def limited(self):
    """Its worker may start it, and no other one for a long time."""
    say("started", self.request.id)


@task()
def errback(self, *args):
    say("errback", *args)


@task()
def total(self, parts):
    return sum(parts)


@task()
def part(self):
    return 1


@task_quarantined.connect
def on_quarantined(sender, task_id, exception, args, headers, **_):
    say("quarantined", task_id, sender.name, exception.deaths, args, headers["id"] == task_id)
    if "TOLD" in os.environ:
        wait_for_file(os.environ["TOLD"])
