"""Children that the kernel does not end with their worker."""

from __future__ import annotations

import ctypes
import os

from celery import signals

from celery_graceful import Graceful
from tests.apps import make_app, say, wait_for_file

PR_SET_PDEATHSIG = 1

app = make_app("orphans")
Graceful(app)


def hold() -> None:
    """A child that is slow to start: it has not asked the kernel for anything yet."""
    os.write(1, f">> held {os.getpid()}\n".encode())
    wait_for_file(os.environ["GATE"])


if "HELD" in os.environ:
    os.register_at_fork(after_in_child=hold)


@signals.beat_init.connect
def on_beat(**_: object) -> None:
    say("beat", os.getpid())


@app.task
def forget() -> None:
    """As with a pool's child that has changed its user: the kernel forgets what it was asked."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
    say("forgot", os.getpid())
    wait_for_file(os.environ["GATE"])  # the other child takes the next one
    say("idle", os.getpid())
