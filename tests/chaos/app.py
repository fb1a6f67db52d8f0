"""Tasks that write down when they begin and end, for an app with celery_graceful or without."""

from __future__ import annotations

import os
import time
import uuid

from celery.signals import worker_ready

from celery_graceful import Graceful
from celery_graceful.system import native
from tests.apps import make_app, say

#: 6 s from a kill to running again. Who stands still for longer than the lease is taken for dead.
TUNED = {
    "graceful_lease_ttl": 5.0,
    "graceful_heartbeat_interval": 0.5,
    "graceful_rescue_interval": 0.5,
}

app = make_app("chaos")
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, task_ignore_result=True)
if "CHAOS_PLAIN" not in os.environ:
    app.conf.update(TUNED)
    Graceful(app)


@worker_ready.connect
def on_ready(**_: object) -> None:
    """The log is too long to be read at its usual level."""
    say("READY")


def note(kind: str, task_id: str, run: str) -> None:
    """One line, one write: nothing that is killed leaves half of one."""
    words = (kind, task_id, run, os.environ["CHAOS_WORKER"], os.getpid(), f"{time.monotonic():.6f}")
    write = native.original("os", "write")
    write(_journal(), (" ".join(map(str, words)) + "\n").encode())


def _journal() -> int:
    global _fd
    if _fd is None:
        _fd = os.open(os.environ["CHAOS_JOURNAL"], os.O_WRONLY | os.O_APPEND)
    return _fd


_fd: int | None = None


@app.task(bind=True)
def work(self, seconds):
    """Takes its time."""
    run = uuid.uuid4().hex
    note("S", self.request.id, run)
    time.sleep(seconds)
    note("E", self.request.id, run)
