"""The app that the benchmarks run workers of; ``workers`` sets the environment that it reads."""

from __future__ import annotations

import io
import os
import time
import timeit
from typing import Any

from celery import Celery, Task
from celery.signals import worker_ready, worker_shutting_down

from benchmarks import calls
from benchmarks.brokers import Broker
from celery_graceful import Graceful, GracefulTask, Interrupted

app = Celery("bench", broker=os.environ.get("BENCH_BROKER") or os.environ.get("BENCH_REDIS"))
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_acks_late=not os.environ.get("BENCH_EARLY"),
    task_default_queue=os.environ.get("BENCH_QUEUE", "bench"),
    result_backend=os.environ.get("BENCH_RESULTS"),
    task_ignore_result=not os.environ.get("BENCH_RESULTS"),
    worker_prefetch_multiplier=int(os.environ.get("BENCH_PREFETCH", "4")),
    worker_redirect_stdouts=False,
    task_track_started=bool(os.environ.get("BENCH_STARTED")),
    graceful_grace_period=30,
    graceful_track_chords=bool(os.environ.get("BENCH_CHORDS")),
)
if os.environ.get("BENCH_QUEUE_TYPE"):
    Broker("", os.environ["BENCH_QUEUE_TYPE"]).configure(app.conf, app.conf.task_default_queue)
if os.environ.get("BENCH_STORE"):
    app.conf.graceful_store = os.environ["BENCH_STORE"]
if os.environ.get("BENCH_LEASE"):
    app.conf.graceful_lease_ttl = float(os.environ["BENCH_LEASE"])
if os.environ.get("BENCH_PROBE_PORT"):
    app.conf.update(
        graceful_probe_file=os.environ["BENCH_PROBE_FILE"],
        graceful_probe_port=int(os.environ["BENCH_PROBE_PORT"]),
        graceful_metrics=["prometheus", "otel"],
    )
if os.environ.get("BENCH_PROFILE"):
    from benchmarks.profiled import watch

    watch(os.environ["BENCH_PROFILE"])
if os.environ.get("BENCH_CALLS"):
    calls.watch()
if os.environ.get("BENCH_SENTRY"):
    import sentry_sdk
    from sentry_sdk.crons import monitor as sentry_monitor
    from sentry_sdk.transport import Transport

    class Nowhere(Transport):
        """Drops what it is given."""

        def capture_envelope(self, envelope: Any) -> None:
            """Not to anybody."""

    sentry_sdk.init("http://key@localhost/1", transport=Nowhere, default_integrations=False)
if not os.environ.get("BENCH_PLAIN"):
    Graceful(app)

#: Seconds between two looks of a task that polls.
PAUSE = 0.001

_out = io.FileIO(2, "w", closefd=False)


def say(what: str, value: Any = 0) -> None:
    """Tell the benchmark something: one line in one write."""
    _out.write(f"@bench {what} {time.monotonic()!r} {value}\n".encode())


# -- how soon a task sees that it must stop ----------------------------------------


@app.task(base=GracefulTask, bind=True)
def polls(self: GracefulTask) -> None:
    """Look at ``self.interrupted`` again and again."""
    say("running")
    while not self.interrupted:
        time.sleep(PAUSE)
    say("seen", "polls")


@app.task(base=GracefulTask, bind=True)
def sleeps(self: GracefulTask) -> None:
    """Wait in ``self.sleep``."""
    say("running")
    try:
        self.sleep(600)
    except Interrupted:
        say("seen", "sleeps")


@app.task(base=GracefulTask, bind=True)
def blocks(self: GracefulTask, one_call: bool) -> None:
    """Block in ``time.sleep`` in an ``interruptible`` block.

    Args:
        one_call: In one long call; else in many short ones, as threads need it.
    """
    say("running")
    try:
        with self.interruptible():
            while True:
                time.sleep(600 if one_call else PAUSE)
    except Interrupted:
        say("seen", "blocks")


_told = False


@worker_shutting_down.connect
def _on_shutting_down(**_: Any) -> None:
    """What people write by hand: a flag, set by Celery's own signal."""
    global _told
    _told = True


@app.task
def polls_by_hand() -> None:
    """Look at the flag that ``worker_shutting_down`` sets."""
    say("running")
    while not _told:
        time.sleep(PAUSE)
    say("seen", "polls_by_hand")


@worker_ready.connect
def _on_ready(**_: Any) -> None:
    say("ready")


# -- the rest ----------------------------------------------------------------------


@app.task(base=GracefulTask)
def empty_graceful() -> None:
    """Do nothing, gracefully."""


@app.task(base=Task)
def empty(*_: Any) -> None:
    """Do nothing."""


def compute(milliseconds: float = 1.0) -> None:
    """For so long, of the processor."""
    end = time.thread_time() + milliseconds / 1000
    while time.thread_time() < end:
        pass


@app.task(base=GracefulTask)
def millisecond(times: float = 1.0) -> None:
    """Compute for as long."""
    compute(times)


@app.task(base=GracefulTask, monitor="bench")
def monitored(times: float = 1.0) -> None:
    """As ``millisecond``."""
    compute(times)


@app.task(base=GracefulTask)
def sentrys(times: float = 1.0) -> None:
    """As ``millisecond``, with a check-in as Sentry's own decorator makes it."""
    with sentry_monitor(monitor_slug="bench"):
        compute(times)


@app.task(base=GracefulTask, bind=True)
def checkpointed(self: GracefulTask, times: float = 1.0) -> None:
    """As ``millisecond``, and save something."""
    compute(times)
    self.checkpoint({"done": 1})


@app.task
def done(*_: Any) -> None:
    """Follow what has ended."""
    say("done")


@app.task
def counted() -> None:
    """Say how many calls were counted."""
    say("calls", calls.so_far())


@app.task
def begins() -> None:
    """Say so."""
    say("began")


@app.task
def busy(seconds: float) -> None:
    """Know nothing of interrupts."""
    say("running")
    time.sleep(seconds)


@app.task(base=GracefulTask, bind=True)
def reads(self: GracefulTask, rounds: int) -> None:
    """Measure what one look at ``self.interrupted`` costs."""
    say("read", read_cost(self, rounds))


def read_cost(task: GracefulTask, rounds: int) -> float:
    """Nanoseconds for one look at ``task.interrupted``, without the loop around it."""

    def best(statement: str) -> float:
        timer = timeit.Timer(statement, globals={"task": task})
        # Many short ones: some of them are undisturbed on a busy machine, too.
        return min(timer.repeat(rounds, 1000)) / 1000 * 1e9

    return best("task.interrupted") - best("pass")
