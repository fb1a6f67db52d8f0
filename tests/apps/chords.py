"""Headers and bodies of chords; a dispatcher stands still where a test says so.

With HOLD in the environment, whoever is about to send a body waits there while that file exists.
"""

from __future__ import annotations

import gc
import os
import time

from celery.backends.redis import RedisBackend

from celery_graceful import Graceful, GracefulTask
from tests.apps import make_app, say, wait_for_file

app = make_app("chords")
Graceful(app)

if "HOLD" in os.environ:
    _unpack = RedisBackend._unpack_chord_result

    def unpack(self, tup, decode, **kwargs):
        if os.path.exists(os.environ["HOLD"]):
            say("dispatches")
            while os.path.exists(os.environ["HOLD"]):
                time.sleep(0.02)
        return _unpack(self, tup, decode, **kwargs)

    RedisBackend._unpack_chord_result = unpack


@app.task(base=GracefulTask, name="part")
def part(value, path=None):
    say("part", value)
    if path is not None:
        wait_for_file(path)
    return value


@app.task(base=GracefulTask, name="fails")
def fails():
    raise LookupError("for good")


@app.task(base=GracefulTask, name="total")
def total(values):
    say("total", *values)
    return sum(values)


@app.task(base=GracefulTask, name="errback")
def errback(request, exc, traceback):
    say("errback", exc)


@app.task(name="frozen")
def frozen():
    return gc.get_freeze_count()
