"""Embedded workers, one after the other and two at once, in a program of their own: it asserts.

`python -m tests.apps.embedded <what> <pool>`, with BROKER_URL and RESULT_URL in the environment.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import pytest
import redis
from celery import Celery
from celery import signals as celery_signals
from celery.app.trace import TraceInfo
from celery.contrib.testing.worker import start_worker
from celery.result import allow_join_result
from celery.worker import WorkController, state

from celery_graceful import Graceful, GracefulTask
from celery_graceful.operations import Operations
from celery_graceful.probes import thread
from celery_graceful.probes.thread import Probes
from celery_graceful.runs import run as _run
from celery_graceful.system import log_thread
from celery_graceful.task import base as _task
from celery_graceful.timeline import worker_state
from celery_graceful_probe import look
from tests.support.patience import has_patience
from tests.support.workers import TIMEOUT, wait_until

BROKER, RESULTS = os.environ["BROKER_URL"], os.environ["RESULT_URL"]
server = redis.Redis.from_url(RESULTS, decode_responses=True)
queues = redis.Redis.from_url(BROKER, decode_responses=True)

#: Rows of an export, and workers of which nothing may be left.
ROWS, WORKERS = 40, 20

#: Seconds of grace, and until the soft deadline.
GRACE, SOFT = 20.0, 13.0

#: What a worker says that fetches nothing.
QUIET = (503, "not ready: it is quiet\n")

apps: WeakSet[Celery] = WeakSet()


def make(name: str = "one", *, plain: bool = False, shared: bool = False) -> Celery:
    """A new app, as each test of a program with Celery's fixtures has one."""
    app = Celery(name, broker=BROKER, backend=RESULTS, set_as_current=False)
    app.conf.update(task_default_queue=name, worker_prefetch_multiplier=4)
    app.conf.update(graceful_grace_period=GRACE, worker_pool=POOL)
    if not plain:
        Graceful(app)
    base = app.Task if plain else GracefulTask

    @app.task(name=f"{name}.add", base=base, shared=shared)
    def add(a: int, b: int) -> int:
        return a + b

    @app.task(name=f"{name}.export", base=base, shared=shared, bind=True)
    def export(self: Any) -> None:
        for row in self.iterate(range(ROWS), every=1):
            if server.get("slow") and row == 3:
                server.set("started", 1)
                self.sleep(60)
            server.rpush("rows", row)

    @app.task(name=f"{name}.block", base=base, shared=shared)
    def block() -> str:
        server.incr("blocked")
        while not server.get("go"):
            time.sleep(0.01)
        return "done"

    apps.add(app)
    return app


@contextmanager
def worker(app: Celery, **options: Any) -> Iterator[Any]:
    """Celery's, as its fixtures start it."""
    options = {"pool": POOL, "concurrency": 2, "perform_ping_check": False, **options}
    options["shutdown_timeout"] = TIMEOUT
    with start_worker(app, **options) as started:
        yield started


def call(app: Celery, name: str, *args: Any) -> Any:
    return app.tasks[f"{app.main}.{name}"].delay(*args)


def nobody_holds(queue: str, *ids: str) -> None:
    """All are back in the queue, and nobody who claims or could claim is left."""
    waiting = queues.lrange(queue, 0, -1)
    assert len(waiting) == len(ids), (len(waiting), ids)
    assert all(any(id in message for message in waiting) for id in ids)
    kinds = ("claims", "lease", "workers", "fallen")
    left = [key for key in queues.keys("graceful:*") if key.split(":")[1] in kinds]
    assert not left, left


# -- what is tested ------------------------------------------------------------------


def stop() -> None:
    """`stop()` drains: what runs is interrupted and goes on with the next worker."""
    app = make()
    server.set("slow", 1)
    with worker(app) as running:
        export = call(app, "export")
        wait_until(lambda: server.get("started"))
        others = [call(app, "export") for _ in range(4)]
        began = time.monotonic()
        running.stop()
        took = time.monotonic() - began
        assert took < SOFT, took
        assert export.state == "INTERRUPTED"
        nobody_holds("one", export.id, *(each.id for each in others))
    server.delete("slow")
    with worker(make()):
        for each in (export, *others):
            each.get(timeout=TIMEOUT)
    assert server.llen("rows") == 5 * ROWS, "a row was exported twice, or not at all"
    assert not queues.llen("one")


def end() -> None:
    """What still runs when the fixture ends its worker is back in the queue."""
    app = make()
    with worker(app):
        blocked = call(app, "block")
        wait_until(lambda: server.get("blocked"))
    assert blocked.state == "INTERRUPTED"
    nobody_holds("one", blocked.id)
    with worker(app):  # the same app again
        wait_until(lambda: server.get("blocked") == "2")
        server.set("go", 1)
        assert blocked.get(timeout=TIMEOUT) == "done"


def end_asleep() -> None:
    """The same where a task keeps the worker's thread, and what it has done is not done again."""
    app = make()
    server.set("slow", 1)
    with worker(app):
        export = call(app, "export")
        wait_until(lambda: server.get("started"))
        began = time.monotonic()
    assert time.monotonic() - began < SOFT
    assert export.state == "INTERRUPTED"
    nobody_holds("one", export.id)
    server.delete("slow")
    with worker(app):
        export.get(timeout=TIMEOUT)
    assert server.llen("rows") == ROWS, "a row was exported twice, or not at all"


def remote() -> None:
    """A remote `shutdown` ends it, and the next one starts all the same."""
    app = make()
    for number in range(2):
        with worker(app) as running:
            assert call(app, "add", 1, number).get(timeout=TIMEOUT) == 1 + number
            ended = threading.Event()
            celery_signals.worker_shutdown.connect(lambda ended=ended, **_: ended.set(), weak=False)
            app.control.broadcast("shutdown", destination=[running.hostname])
            assert ended.wait(TIMEOUT)
    assert state.should_stop is None


def as_it_was() -> None:
    """Of the process, and of the app's tasks, nothing is changed."""
    app = make()
    app.finalize()

    def seen() -> dict[str, Any]:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGURG, signal.SIGUSR1)
        fd = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(fd)
        return {
            "signals": [signal.getsignal(number) for number in numbers],
            "wakeup": fd,
            "filters": list(logging.getLogger("celery.app.trace").filters),
            "log thread": log_thread.current.value,
            "board": (worker_state.board.value, worker_state.flag.value),
            "limits": (_run.on_limited.values, _task.bridged_soft_limit.value),
            "stops": (state.should_stop, state.should_terminate),
            "tasks": {
                name: {key: vars(task).get(key) for key in ("Request", "run", "__trace__")}
                for name, task in app.tasks.items()
            },
            "sentry": sentry_listens(),
            "trace": TraceInfo.__init__,
            "environment": {k: v for k, v in os.environ.items() if "GRACEFUL" in k},
        }

    from sentry_sdk.integrations.celery import beat

    def sentry_listens() -> int:
        receivers = celery_signals.task_success._live_receivers(None)
        return receivers.count(beat.crons_task_success)

    celery_signals.task_success.connect(beat.crons_task_success)
    before = seen()
    assert before["sentry"] == 1
    for _ in range(2):
        with worker(app) as running:
            assert call(app, "add", 1, 2).get(timeout=TIMEOUT) == 3
            assert worker_state.board.value is not None
        after = seen()
        assert after == before, [(k, before[k], after[k]) for k in before if after[k] != before[k]]
        assert running.stop.__func__ is type(running).stop
    assert app.tasks["one.add"](1, 2) == 3


def leaves_nothing() -> None:
    """Threads, files and memory are as before: as much of them as plain Celery leaves."""

    class Controller(WorkController):
        def on_consumer_ready(self, consumer: Any) -> None:
            self.started.set()

    def one(plain: bool) -> None:
        app = make(plain=plain)
        if POOL == "prefork":  # that of Celery's fixtures leaves its log listener behind
            running = Controller(app=app, pool_cls=POOL, concurrency=1, without_mingle=True)
            running.started = threading.Event()
            thread = threading.Thread(target=running.start, daemon=True)
            thread.start()
            assert running.started.wait(TIMEOUT)
            with allow_join_result():
                assert call(app, "add", 1, 2).get(timeout=TIMEOUT) == 3
            running.stop()
            state.should_terminate = 0 if plain else None
            thread.join(TIMEOUT)
            if thread.is_alive():
                faulthandler.dump_traceback()
                raise AssertionError(f"no end; plain: {plain}")
            state.should_terminate = None
        else:
            with worker(app) as running:
                assert call(app, "add", 1, 2).get(timeout=TIMEOUT) == 3
                if not plain:
                    running.stop()

    def left() -> tuple[int, int, int, int]:
        gc.collect()
        files = len(os.listdir("/proc/self/fd"))
        return threading.active_count(), files, len(apps), len(gc.get_objects())

    def growth(plain: bool, times: int) -> list[float]:
        for _ in range(2):  # modules, and what a process keeps for good
            one(plain)
        before = left()
        for _ in range(times):
            one(plain)
        end = time.monotonic() + 5
        while (after := left())[:2] > before[:2] and time.monotonic() < end:
            time.sleep(0.05)  # a thread of a pool is on its way out
        return [(b - a) / times for a, b in zip(before, after, strict=True)]

    ours, plain = growth(False, WORKERS), growth(True, 2)
    print("left by one worker: threads, files, apps, objects:", plain, ours)
    for what, of_plain, of_ours in zip(("threads", "files", "apps"), plain, ours, strict=False):
        # One file more or less of two plain ones is half a file.
        assert of_ours <= max(0.0, of_plain) + 0.6, what
    # Of a prefork worker Celery itself keeps all there is, and what belongs to it of ours.
    assert ours[3] <= 1.25 * max(0.0, plain[3]) + 60, "objects"


def two_at_once() -> None:
    """Each has its own messages; Celery's own flags end them together."""
    # Which app a thread is at work for, Celery knows by the one that came last.
    one, two = make("one", shared=True), make("two", shared=True)
    with worker(one, use_eventloop=False) as first, worker(two, use_eventloop=False) as second:
        assert first.graceful is not second.graceful
        for number in range(20):
            results = [call(app, "add", number, 1) for app in (one, two)]
            assert [each.get(timeout=TIMEOUT) for each in results] == [number + 1] * 2
    assert worker_state.board.value is None
    nobody_holds("one")
    nobody_holds("two")


def _get(probes: Probes, page: str) -> tuple[int, str]:
    assert probes._endpoint is not None
    url = f"http://127.0.0.1:{probes._endpoint.port}/{page}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read().decode()


def watched() -> None:
    """Probes and metrics of each, and nothing of them when it has gone; twice in one process."""
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            names = ["one"] if POOL == "prefork" else ["one", "two"]
            found: list[Probes] = []
            for name in names:
                app = make(name, shared=True)
                app.conf.update(
                    graceful_probe_port=0,
                    graceful_probe_file=f"{folder}/%n",
                    graceful_metrics=["prometheus", "otel"],
                )
                alone = {} if POOL == "prefork" else {"use_eventloop": False}
                stack.enter_context(worker(app, hostname=f"{name}@test", **alone))
                found += [one for one in thread._probes.values if one not in (None, *found)]
                assert call(app, "add", 1, 1).get(timeout=TIMEOUT) == 2
            for name, probes in zip(names, found, strict=True):
                wait_until(lambda asked=probes: _get(asked, "ready") == (200, "ready\n"))
                assert _get(probes, "live") == (200, "live\n")
                assert 'celery_graceful_phase{phase="running"} 1.0' in _get(probes, "metrics")[1]
                wait_until(lambda path=f"{folder}/{name}": look("ready", path) == (0, "ready"))
            Operations(app, wait=TIMEOUT).quiet(f"{names[-1]}@test")
            wait_until(lambda asked=found[-1]: _get(asked, "ready") == QUIET)
            if len(found) > 1:
                assert _get(found[0], "ready")[0] == 200, "the other one is not"
            stack.close()
            assert not os.listdir(folder)
        assert not any(thread._probes.values)
        for probes in found:
            assert probes._endpoint is not None
            # Not by its port: another process may have that by now.
            assert probes._endpoint._sock.fileno() == -1
        assert worker_state.board.value is None


WHAT: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (stop, end, end_asleep, remote, as_it_was, leaves_nothing, two_at_once, watched)
}

if __name__ == "__main__":
    POOL = sys.argv[2]
    has_patience(pytest.MonkeyPatch())
    for what in sys.argv[1].split(","):
        server.flushdb()
        queues.flushdb()
        began = time.monotonic()
        WHAT[what]()
        print(f"ok {what} {time.monotonic() - began:.1f} s", flush=True)
