"""Tasks that tell when they start and end, for workers that are cut off, frozen or killed."""

from __future__ import annotations

import os
import signal
import time

from celery import Task

from celery_graceful import Graceful, GracefulTask
from celery_graceful.membership import events
from celery_graceful.system import native
from tests.apps import make_app, say, wait_for_file

events.AHEAD = events.TIMEOUT = 20.0  # however busy the machine is

app = make_app("claims")
if "PLAIN" not in os.environ:
    Graceful(app)
app.conf.task_acks_late = True


def _hold(self, seconds):
    """Work for so many seconds, or until the file of that name is there."""
    say("started", self.request.id, os.getpid())
    if isinstance(seconds, str):
        wait_for_file(seconds)
    else:
        time.sleep(seconds)
    say("ended", self.request.id)
    return self.request.id


@app.task(base=GracefulTask, bind=True, name="hold")
def hold(self, seconds):
    return _hold(self, seconds)


@app.task(base=Task, bind=True, name="hold_plain", acks_late=True)
def hold_plain(self, seconds):
    return _hold(self, seconds)


@app.task(base=GracefulTask, bind=True, name="hold_early", acks_late=False)
def hold_early(self, seconds):
    return _hold(self, seconds)


@app.task(base=GracefulTask, bind=True, name="reload")
def reload(self, first, path):
    """Of several that have a copy, that on the node ``first`` begins first, and ends last."""
    if self.request.hostname != first:
        wait_for_file(path)
    self.step("cache", say, "reloaded", self.request.hostname)
    for row in self.iterate(range(3)):
        say("row", row, self.request.hostname)
    say("done", self.request.id)
    if self.request.hostname == first:
        wait_for_file(f"{path}-end")
    say("ended", self.request.id)


@app.task(base=GracefulTask, bind=True, name="nap")
def nap(self, seconds):
    """Can be interrupted at any time."""
    say("started", self.request.id, os.getpid())
    self.sleep(seconds)
    say("ended", self.request.id)
    return self.request.id


@app.task(base=GracefulTask, name="total")
def total(results):
    say("total", len(results))
    return len(results)


@app.task(base=GracefulTask, bind=True, name="cut_off", ignore_result=True)
def cut_off(self, host, port):
    """Cuts all connections to Redis and asks the worker to stop, and ends before it sees either."""
    say("started", self.request.id, os.getpid())
    # Not the socket of a green pool: nobody else gets a turn.
    with native.original("socket", "socket")() as sock:
        sock.connect((host, port))
        sock.sendall(b"CLIENT KILL TYPE normal SKIPME yes\r\n")
        sock.recv(100)
    os.kill(os.getpid(), signal.SIGTERM)
