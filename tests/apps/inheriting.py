"""A thread of the main process makes a cached property, without end, while children are forked."""

from __future__ import annotations

import os
import threading

from celery.signals import worker_init
from kombu.utils.objects import cached_property

from celery_graceful import Graceful
from tests.apps import make_app, say

app = make_app("inheriting")
Graceful(app)

MAIN = os.getpid()
begun = threading.Event()


class Client:
    @cached_property
    def address(self):
        if os.getpid() == MAIN:
            begun.set()
            threading.Event().wait()
        return "made by the child"


client = Client()


@worker_init.connect
def on_init(**_):
    threading.Thread(target=lambda: client.address, daemon=True).start()
    begun.wait()


@app.task(name="reads")
def reads(kills=False):
    say("read", client.address)
    if kills:
        os.kill(os.getpid(), 9)
