"""Tasks with check-ins, one for each way to end.

MONITORS says who monitors them: ``own`` (their class option), ``beat`` (``graceful_monitor_beat``)
or ``sentry`` (sentry's own integration). Each behaves well when it is delivered again.
"""

from __future__ import annotations

import os
import sys
import time

from celery import beat
from celery.exceptions import Ignore, Reject

from celery_graceful import Graceful, GracefulTask, Monitor
from celery_graceful.monitors import heartbeat, outbox
from celery_graceful.monitors.registry import monitors_of
from tests.apps import make_app, say, sentry, wait_for_file, work

app = make_app("monitored")
graceful = Graceful(app)
HOW = os.environ.get("MONITORS", "own")
LONG = 60.0
GREENLET_EXIT = sys.modules["gevent"].GreenletExit if "gevent" in sys.modules else ()

app.conf.graceful_monitor_beat = HOW == "beat"
app.conf.beat_max_loop_interval = 0.2
# A server that is busy is not away, and gets time at the end of a process, too.
outbox.LAST_WAIT = app.conf.graceful_exit_timeout = 15.0
if "HEARTBEAT" in os.environ:
    heartbeat.AT_LEAST = float(os.environ["HEARTBEAT"])
    heartbeat.interval_of = lambda check_in: heartbeat.AT_LEAST

sentry.init(
    monitor_beat_tasks=HOW == "sentry",
    before_send=(lambda event, hint: None) if "DROP" in os.environ else None,
)


def task(**options):
    def decorate(run):
        kind = {"own": Monitor(run.__name__, schedule="0 4 * * *")}.get(HOW)
        options.setdefault("base", GracefulTask)
        made = app.task(bind=True, name=run.__name__, monitor=kind, **options)(run)
        entry = {"task": run.__name__, "schedule": 3600.0, "options": {"task_id": made.name}}
        if run.__name__ == "expired":
            entry["options"]["expires"] = -1
        app.conf.beat_schedule[run.__name__] = entry
        return made

    return decorate


def die(task):
    """As an OOM kill does, after what was reported so far has left."""
    monitors_of(task.app).dispatch.wait(LONG)
    os.kill(os.getpid(), 9)


def nap():
    """In short sleeps: a thread hears of nothing in a long one."""
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        time.sleep(0.02)


def again(self):
    return self.request.delivery_info.get("redelivered")


@task()
def success(self):
    time.sleep(0.05)


@task()
def failure(self):
    raise ValueError("on purpose")


@task(base=app.Task)
def plain_success(self):
    pass


@task(base=app.Task)
def plain_failure(self):
    raise ValueError("on purpose")


@task(max_retries=2)
def retry_success(self):
    time.sleep(0.05)
    if self.request.retries < 2:
        raise self.retry(countdown=0)


@task(max_retries=1)
def retry_failure(self):
    raise self.retry(countdown=0, exc=ValueError("on purpose"))


@task(base=app.Task, max_retries=1)
def plain_retry(self):
    if not self.request.retries:
        raise self.retry(countdown=0)


@task(max_retries=1)
def retry_and_return(self):
    if not self.request.retries:
        self.retry(countdown=0.5, throw=False)


class Raising(GracefulTask):
    """Its handlers are of no use."""

    def on_failure(self, *_):
        raise RuntimeError("on purpose, too")

    on_retry = on_failure


@task(base=Raising)
def failure_hook_raises(self):
    raise ValueError("on purpose")


@task(base=Raising, max_retries=1)
def retry_hook_raises(self):
    if not self.request.retries:
        raise self.retry(countdown=0.5)


@task(soft_time_limit=3)  # which begins when the pool takes it
def soft_limit(self):
    nap()


@task(time_limit=10)  # in which its check-in leaves, also on a busy machine
def hard_limit(self):
    time.sleep(LONG)


@task()
def ignored(self):
    raise Ignore


@task()
def rejected(self):
    raise Reject("on purpose")


@task()
def revoked(self):
    say("NOT REACHED")


@task()
def expired(self):
    say("NOT REACHED")


@task()
def terminated(self):
    say("started terminated")
    work(LONG)


@task()
def child_killed(self):
    if not again(self):
        die(self)


@task(acks_late=False)
def child_killed_for_good(self):
    die(self)


@task()
def interrupted(self):
    say("started interrupted")
    if not again(self):
        self.sleep(LONG)


@task()
def given_up(self):
    say("started given_up")
    end = time.monotonic() + (0 if again(self) else LONG)
    while time.monotonic() < end:
        try:
            time.sleep(0.05)
        except GREENLET_EXIT:
            raise
        except BaseException:
            pass


@task()
def worker_killed(self):
    say("started worker_killed")
    if not again(self):
        time.sleep(LONG)


@task(time_limit=60)
def beating(self, gate):
    say("started beating")
    wait_for_file(gate)
    say("finished beating")


@task()
def ticking(self):
    say("started ticking")
    time.sleep(0.2)


class FireAtOnce(beat.Scheduler):
    """Fires the entries that FIRE names, once, and ends."""

    def tick(self, *args, **kwargs):
        for name in os.environ["FIRE"].split(","):
            self.apply_entry(self.schedule[name], producer=self.producer)
        raise SystemExit


class FireOften(beat.Scheduler):
    """Fires ``ticking`` every 0.3 s."""

    def setup_schedule(self):
        self.install_default_entries({})
        entry = {**app.conf.beat_schedule["ticking"], "schedule": 0.3, "options": {}}
        self.merge_inplace({"ticking": entry})
