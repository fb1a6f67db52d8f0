"""Who wants to know that a worker ends: an exit handler, a receiver of `worker_shutdown`."""

from __future__ import annotations

import atexit

from celery.signals import worker_init, worker_shutdown

from tests.apps import say
from tests.apps.lifecycle import app

__all__ = ["app"]


@worker_init.connect
def on_init(**_):
    atexit.register(say, "exit handler")


@worker_shutdown.connect
def on_shutdown(**_):
    say("worker_shutdown")
