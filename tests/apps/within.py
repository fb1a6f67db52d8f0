"""Tasks that do what has a say in how their run ends: apply others, send on, take signals."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import time
from functools import partial

from celery import Celery, signals

from celery_graceful import Graceful, GracefulTask, Phase, ShutdownTimeLimit, current_interrupt
from tests.apps import make_app, say, work

app: Celery = make_app("within")
Graceful(app)
graceful = partial(app.task, base=GracefulTask, bind=True)
plain = partial(app.task, bind=True)

LONG = 60.0


# -- others, applied here and now ------------------------------------------------------


@graceful()
def cooperative(self, outer):
    """Stands at a safe point."""
    say("began", outer)
    self.sleep(LONG)


@graceful()
def limited(self, outer):
    """Ends by the soft limit."""
    say("began", outer)
    work(LONG)


@plain(acks_late=True)
def fenced(self, outer):
    """As `limited`, a plain task."""
    say("began", outer)
    work(LONG)


@plain()
def watched(self, outer):
    """As `limited`, a plain task that is acknowledged early."""
    say("began", outer)
    work(LONG)


def apply_all(self, inner, how):
    for _ in range(5):
        if how == "apply":
            app.tasks[f"tests.apps.within.{inner}"].apply((self.request.id,))
        else:  # with task_always_eager
            app.tasks[f"tests.apps.within.{inner}"].delay(self.request.id)
    say("NOT REACHED", self.request.id)


@graceful()
def outer(self, inner, how):
    """Looks at no result."""
    apply_all(self, inner, how)


@plain(acks_late=False)
def plain_outer(self, inner, how):
    """Looks at no result."""
    try:
        apply_all(self, inner, how)
    except ShutdownTimeLimit:
        say("told", self.request.id)
        raise


# -- sent on ---------------------------------------------------------------------------


#: Until when the sending of a task's successor takes, by its id.
until = {}


@signals.after_task_publish.connect(weak=False)
def export(**_):
    """Somebody's metrics: they take until the stop, and a while longer."""
    phase = until.pop(app.current_task.request.id, None) if app.current_task else None
    if phase is not None:
        say("sent", app.current_task.request.id)
        while (interrupt := current_interrupt()) is None or interrupt.phase < phase:
            time.sleep(0.01)
        work(0.5)


@graceful(max_retries=5)
def again(self, block=False):
    """Retries."""
    until[self.request.id] = Phase.QUIET
    if block:
        with self.interruptible():
            raise self.retry(countdown=0)
    try:
        self.retry(countdown=0)
    finally:
        say("left", self.request.id)
        if self.interrupted:
            self.sleep(0)


@graceful(max_retries=5)
def again_later(self):
    """Retries, and has something to do before it ends."""
    until[self.request.id] = Phase.QUIET
    retry = self.retry(countdown=0, throw=False)
    self.checkpoint()
    raise retry


@graceful()
def replaced(self, block=False):
    """Ends by another."""
    until[self.request.id] = Phase.QUIET
    if block:
        with self.interruptible():
            return self.replace(fenced.si("nothing"))
    return self.replace(fenced.si("nothing"))


@graceful()
def replaced_late(self):
    """Is told of the limit."""
    until[self.request.id] = Phase.SOFT
    return self.replace(fenced.si("nothing"))


@plain(acks_late=False, max_retries=5)
def plain_again(self):
    """Is told of the limit."""
    until[self.request.id] = Phase.SOFT
    self.retry(countdown=0)


@plain(acks_late=False)
def plain_replaced(self):
    """Is told of the limit."""
    until[self.request.id] = Phase.SOFT
    self.replace(fenced.si("nothing"))


# -- signals -----------------------------------------------------------------------------


@graceful()
def looping(self):
    """As servers, bots and clients do that run in a loop of their own."""

    async def main():
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, print)
        await asyncio.sleep(0)

    asyncio.run(main())


@graceful()
def handling(self):
    """As some drivers of browsers do."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGURG):
        signal.signal(number, signal.SIG_DFL)


@graceful()
def sleeping(self):
    """Ends at the first interrupt."""
    say("began", self.request.id)
    with self.interruptible():
        time.sleep(LONG)


@graceful()
def about_to_wait(self):
    """Is signalled when Python has last looked for signals, and begins to wait after that."""
    libc = ctypes.CDLL(None)
    others = ctypes.create_string_buffer(128)
    libc.sigfillset(others)
    libc.sigdelset(others, int(signal.SIGURG))
    say("began", self.request.id)
    with self.interruptible():  # in C, from one to the next
        list(map(partial.__call__, [partial(libc.sigsuspend, others), partial(libc.sleep, 60)]))


@graceful()
def deadlocked(self):
    """Holds the interpreter for ever."""
    say("began", self.request.id)
    libc = ctypes.PyDLL(None)
    mutex = ctypes.create_string_buffer(128)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
