"""Tasks for every way to meet a stop."""

from __future__ import annotations

import ctypes
import os
import time
from types import SimpleNamespace

from billiard import pool
from celery.signals import worker_process_init

from celery_graceful import Graceful, GracefulTask, Phase, ShutdownTimeLimit
from tests.apps import make_app, say, swallow

app = make_app("lifecycle")
Graceful(app)

LONG = 60.0
app.conf.short_sleeps = "short_sleeps" in os.environ
task = app.task(base=GracefulTask, bind=True)


if "LONG_SECOND" in os.environ:

    @worker_process_init.connect
    def on_child(**_):
        """The second that billiard's children wait for at their end takes half a minute."""
        wait = {"sleep": lambda seconds: time.sleep(30 if seconds == 1 else seconds)}
        pool.time = SimpleNamespace(**{**vars(time), **wait})


@task
def cooperative(self):
    """Asks between its steps."""
    say("started cooperative", self.request.id)
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        if self.interrupted:
            say("saw", self.request.id)
            self.sleep(0)
        time.sleep(0.02)


@task
def sleeping(self):
    """Sleeps the package's sleep."""
    say("started sleeping", self.request.id)
    self.sleep(LONG)


@task
def blocking(self):
    """Blocks in a system call inside of `interruptible`."""
    say("started blocking", self.request.id)
    with self.interruptible():
        # In the threads pool a call ends before the interrupt is seen: so many short ones.
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            time.sleep(0.05 if self.app.conf.short_sleeps else LONG)


@task
def handling(self):
    """Handles the soft limit and returns."""
    say("started handling", self.request.id)
    try:
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            time.sleep(0.05 if self.app.conf.short_sleeps else LONG)
    except ShutdownTimeLimit:
        say("finished", self.request.id)
        return "handled"


@task
def shielded(self):
    """Holds a shield past the soft deadline."""
    say("started shielded", self.request.id)
    with self.shield():
        while self.interrupt is None or self.interrupt.phase < Phase.SOFT:
            time.sleep(0.02)
        say("shield ends", self.request.id)
    say("NOT REACHED", self.request.id)


@task
def swallowing(self):
    """Swallows every exception."""
    end = time.monotonic() + LONG
    swallow(
        lambda: say("started swallowing", self.request.id),
        lambda: time.monotonic() > end,
        lambda: say("swallowed", self.request.id),
    )


@task
def stuck(self):
    """Sits in a C call that nothing interrupts: a mutex that it holds itself."""
    say("started stuck", self.request.id)
    libc = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(128)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


@task
def hogging(self):
    """As `stuck`, and does not give up the GIL."""
    say("started hogging", self.request.id)
    libc = ctypes.PyDLL(None)
    mutex = ctypes.create_string_buffer(128)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


@task
def hogging_for(self, seconds):
    """Holds the GIL for a while."""
    say("started hogging_for", self.request.id)
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    say("finished", self.request.id)


@task
def short(self):
    """Ends by itself."""
    say("started short", self.request.id)
    time.sleep(0.1)
    say("finished", self.request.id)
    return "done"


@app.task
def plain_early(seconds):
    """No graceful task, acknowledged early."""
    say("started plain_early")
    time.sleep(seconds)
    say("finished plain_early")


@app.task(acks_late=True)
def plain_late(seconds):
    """No graceful task, acknowledged late."""
    say("started plain_late")
    time.sleep(seconds)
    say("finished plain_late")
