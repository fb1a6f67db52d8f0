"""Tasks and workers that do their worst."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from functools import partial

from billiard.popen_fork import Popen
from celery import bootsteps
from celery.exceptions import Reject
from celery.signals import worker_ready

from celery_graceful import Graceful, GracefulTask, ShutdownTimeLimit
from celery_graceful.phases import Phase
from celery_graceful.worker import watch
from tests.apps import make_app, say, swallow, take_time_to_leave, wait_for_file

app = make_app("hard_times")
Graceful(app)
task = partial(app.task, base=GracefulTask, bind=True)

LONG = 60.0


@task()
def waiting(self):
    """Ends at the first interrupt."""
    say("started waiting", self.request.id)
    self.sleep(LONG)


@task()
def patient(self, seconds):
    """Goes on after an interrupt, and ends by itself."""
    say("started patient", self.request.id)
    time.sleep(seconds)
    say("finished", self.request.id)


@task()
def gated(self, path):
    """Goes on after an interrupt, and ends when there is a file."""
    say("started gated", self.request.id)
    wait_for_file(path)
    say("finished", self.request.id)


@task()
def swallowing(self):
    """Swallows every exception."""
    swallow(lambda: say("started swallowing", self.request.id), lambda: False)


@task(acks_late=False)
def early_swallowing(self):
    """The same, acknowledged before it starts."""
    swallow(lambda: say("started early_swallowing", self.request.id), lambda: False)


def _end_late(self, path):
    swallow(lambda: say("started", self.name.rpartition(".")[2]), lambda: os.path.exists(path))
    say("ended", self.request.id)
    return "late"


@task()
def ending_late(self, path):
    """Swallows every exception, and ends by itself when there is a file."""
    return _end_late(self, path)


@task(acks_late=False)
def early_ending_late(self, path):
    """The same, acknowledged before it starts."""
    return _end_late(self, path)


@app.task(bind=True)
def plain_early(self):
    """No graceful task, acknowledged early."""
    say("started plain_early", self.request.id)
    try:
        for _ in range(3000):
            time.sleep(0.1)
    finally:
        say("left", self.request.id)


@app.task(bind=True, acks_late=True)
def plain_ending_late(self, path):
    """The same, and is no ``GracefulTask``."""
    return _end_late(self, path)


@task()
def napping(self):
    """Sleeps in a call that only an exception ends."""
    try:
        say("started napping", self.request.id)
        time.sleep(LONG)
    except ShutdownTimeLimit:
        say("woken", self.request.id)
        raise


class Left(BaseException):
    """As `gevent.Timeout` and `eventlet.Timeout`: no `Exception`."""


@task()
def leaving(self, how):
    """Is left by what is no `Exception`."""
    raise SystemExit(3) if how == "exit" else Left("on purpose")


@app.task
def leaving_early(how):
    """The same, and has been acknowledged."""
    raise SystemExit(3) if how == "exit" else Left("on purpose")


@task()
def rejecting(self, path):
    """Goes back to its queue by Celery's own means, once."""
    say("started rejecting", self.request.id)
    if not self.request.delivery_info.get("redelivered"):
        wait_for_file(path)
        raise Reject("on purpose", requeue=True)
    say("finished", self.request.id)


@task()
def hogging(self, seconds):
    """Holds the GIL in C."""
    say("started hogging", self.request.id)
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    say("finished", self.request.id)


@task()
def deadlocked(self):
    """Holds the GIL in C for ever."""
    say("started deadlocked", self.request.id)
    libc = ctypes.PyDLL(None)
    mutex = ctypes.create_string_buffer(128)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


@task()
def forking(self):
    """Has a child of its own, and waits for it, whatever comes."""
    # Its own output: the worker's would stay open as long as it lives.
    child = subprocess.Popen(
        ["sleep", str(LONG)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    say("started forking", child.pid)
    while True:
        try:
            child.wait()
            time.sleep(LONG)
        except BaseException:
            pass


@task()
def terminable(self):
    """Tells how it ends."""
    try:
        say("started terminable", self.request.id)
        with self.shield():
            time.sleep(LONG)
    finally:
        say("unwound terminable")


@task()
def child_process_gone(self):
    """Its process dies at the interrupt."""
    say("started child_process_gone", self.request.id)
    self.wait_for_interrupt()
    os.kill(os.getpid(), 9)


@task()
def with_callbacks(self, path):
    """Callbacks: one that raises, one that takes long, one that is told once."""

    def raising(interrupt):
        raise ValueError("from a callback")

    def slow(interrupt):
        wait_for_file(path)

    with (
        self.interrupt_callback(raising),
        self.interrupt_callback(slow),
        self.interrupt_callback(lambda interrupt: say("called", interrupt.reason)),
    ):
        say("started with_callbacks", self.request.id)
        self.wait_for_interrupt()
    say("callbacks done")
    self.sleep(0)


class SlowHook(GracefulTask):
    def on_interrupted(self, interrupt):
        say("hook", interrupt.reason, interrupt.phase.name)
        wait_for_file(self.request.args[0])


@app.task(base=SlowHook, bind=True)
def with_slow_hook(self, path):
    """Its hook takes long: until there is a file."""
    say("started with_slow_hook", self.request.id)
    self.sleep(LONG)


@task(soft_time_limit=3)  # it begins before the task does: on a busy machine long before
def limited(self, how):
    """Runs into an ordinary soft time limit."""
    try:
        say("started limited", how)
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            if how == "computes":
                continue
            if how == "waits":
                self.sleep(LONG)
            time.sleep(0.05 if how == "naps" else LONG)
    except Exception as exc:
        say("limited", how, type(exc).__name__, isinstance(exc, ShutdownTimeLimit))
        raise


@task(time_limit=12)  # it begins before the task does: on a busy machine long before
def hard_limited(self):
    """Runs into a hard time limit."""
    try:
        say("started hard_limited")
        time.sleep(LONG)
    finally:
        say("unwound hard_limited")


@task()
def phases(self):
    """Sees the phases pass."""
    say("started phases", self.request.id)
    seen = None
    while seen is not Phase.SOFT:
        try:
            now = self.interrupt and self.interrupt.phase
            if now is not seen:
                say("phase", now.name, f"{self.interrupt.time_left():.1f}")
                seen = now  # not before: an exception may come in between
            time.sleep(0.02)
        except ShutdownTimeLimit:
            pass


@app.task(rate_limit="1/h")
def limited_rate():
    say("started limited_rate")


class Hangs(bootsteps.StartStopStep):
    """A step of somebody else that never stops, or not before there is a file."""

    requires = ("celery.worker.components:Pool",)

    def stop(self, worker):
        say("hangs")
        wait_for_file(os.environ.get("HANG_UNTIL", "/nonexistent"))

    terminate = stop


if "SEND" in os.environ:  # its queues are in its memory: nobody else can send

    @worker_ready.connect
    def send(**_):
        app.send_task(f"{__name__}.{os.environ['SEND']}")


if "PATIENT" in os.environ:  # billiard gives a child 0.1 s to unwind, and no busy machine does
    _wait = Popen.wait

    def wait(self, timeout=None):
        return _wait(self, LONG if timeout == 0.1 else timeout)

    Popen.wait = wait

if "HANG" in os.environ:
    watch.LAST_RESORT = float(os.environ["HANG"])
    take_time_to_leave()
    app.steps["worker"].add(Hangs)
