"""Apps that the tests run workers of."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from celery import Celery
from kombu import Queue

from celery_graceful.system import native


def make_app(name: str) -> Celery:
    """An app configured by the environment: BROKER_URL, RESULT_URL, GRACE, POOL_START_METHOD.

    LAST_RESORT is how long a worker may take to give up what still runs, where nothing hangs: a
    busy machine may need more than its 3 s for that.

    Any variable CONF_<setting> is evaluated and set: CONF_worker_prefetch_multiplier=1.
    """
    app = Celery(name, broker=os.environ.get("BROKER_URL"), backend=os.environ.get("RESULT_URL"))
    app.conf.update(
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=True,
        worker_redirect_stdouts=False,
        worker_proc_alive_timeout=60.0,  # a child that takes 4 s to start is killed, by default
        task_default_queue=os.environ.get("QUEUE", "celery"),
    )
    if "GRACE" in os.environ:
        app.conf.graceful_grace_period = float(os.environ["GRACE"])
    if "LAST_RESORT" in os.environ:
        from celery_graceful.worker import watch

        watch.LAST_RESORT = float(os.environ["LAST_RESORT"])
    if "POOL_START_METHOD" in os.environ:
        app.conf.worker_pool_start_method = os.environ["POOL_START_METHOD"]
    for key, value in os.environ.items():
        if key.startswith("CONF_"):
            app.conf[key[5:]] = eval(value)
    return app


def take_time_to_leave() -> None:
    """What a worker does last, by force, has as much time as it takes; for what never hangs."""
    from celery_graceful.worker import process_exit

    for name in ("bounded", "bounded_all"):
        limited = getattr(native, name)
        setattr(process_exit, name, lambda call, s, limited=limited: limited(call, s + 20))


def quorum_queues() -> list[Queue]:
    """RabbitMQ's replicated queue; QUORUM is its delivery limit."""
    limit = int(os.environ["QUORUM"])
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": limit}
    return [Queue("celery", queue_arguments=arguments)]


def wait_for_file(path: str) -> None:
    """Go on when a test has made the file."""
    while not os.path.exists(path):
        time.sleep(0.02)


def work(seconds: float) -> None:
    """Sleep in pieces: a thread is stopped between two of them."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def swallow(
    begin: Callable[[], None],
    over: Callable[[], object],
    swallowed: Callable[[], None] = lambda: None,
) -> None:
    """Swallow every exception until it is `over`, also one that comes as it says that it begins."""
    todo = [begin]
    while True:
        try:
            while todo:
                todo.pop()()
            while not over():
                time.sleep(0.01)
            return
        except BaseException:
            swallowed()


def say(*words: Any) -> None:
    """Write one line that starts with `>>`, the time, and cannot be torn."""
    line = " ".join(map(str, (">>", f"{time.monotonic():.4f}", *words)))
    write = native.original("os", "write")  # eventlet's refuses two writers at once
    write(sys.__stderr__.fileno(), (line + "\n").encode())
