"""Run by ``test_green_logs`` in a process of its own: ``python green_logs.py gevent FILE``.

Greenlets log, while the log thread does in the place of a hub that does not come to it.
"""

# ruff: noqa: E402 (patched first)
from __future__ import annotations

import sys
from typing import Any

HUB, FILE = sys.argv[1:]

if HUB == "gevent":
    from gevent import monkey

    monkey.patch_all()
    from gevent import sleep, spawn
else:
    import eventlet

    eventlet.monkey_patch()
    from eventlet import sleep, spawn

import logging
import logging.handlers
import os
import time

from celery_graceful.system import log_thread, native

GREENLETS, LINES, SECONDS = 4, 1000, 60

log_thread.HUB_PATIENCE = 0.0
logger = logging.getLogger("green_logs")
logger.propagate = False
logger.addHandler(logging.handlers.WatchedFileHandler(FILE))
log = log_thread.LogThread(logger, through_loop=lambda: None)
done = [0] * GREENLETS
ended: list[bool] = []


def from_threads() -> None:
    while not ended:
        log(logging.WARNING, "of a thread: %s", "x" * 50)
        native.pause(0.0001)


def from_greenlet(number: int) -> None:
    for line in range(LINES):
        logger.warning("of a greenlet: %s", "y" * 50)
        done[number] += 1
        if line % 10 == 0:
            sleep(0)


native.start_thread(from_threads, "logs")
greenlets: list[Any] = [spawn(from_greenlet, number) for number in range(GREENLETS)]
end = time.monotonic() + SECONDS
while min(done) < LINES and time.monotonic() < end:
    sleep(0.01)
ended.append(True)
print(*done, flush=True)
os._exit(0 if min(done) == LINES else 1)
