"""The demo's app: the background work of a shop.

The demo sets the environment that it reads: see ``workers``.
"""

from __future__ import annotations

import os
import time
import urllib.request
from pathlib import Path
from typing import Any

from celery import Celery
from celery import signals as celery_signals

from celery_graceful import Graceful, GracefulTask, Phase, current_interrupt, signals
from celery_graceful.demo.journal import tell

__all__ = ["app"]

#: Rows of an export; each takes a tenth of a second.
ROWS = 100

app = Celery("shop", broker=os.environ.get("DEMO_REDIS"), backend=os.environ.get("DEMO_REDIS"))
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_acks_late=True,
    worker_log_format="%(levelname)s %(name)s %(message)s",
    worker_task_log_format="%(levelname)s %(name)s %(message)s",
    worker_redirect_stdouts=False,
)
if not os.environ.get("DEMO_PLAIN"):
    Graceful(app)


#: The last row that this process has written, by task.
last_row: dict[str, int] = {}


@app.task(base=GracefulTask, bind=True, name="export_orders")
def export_orders(self: GracefulTask) -> None:
    """Write the orders to a file, row by row; go on after the last row that was written."""
    task_id = self.request.id
    with export_file(task_id).open("a") as out:
        for row in self.iterate(range(1, ROWS + 1), every=10):
            if self.resumed and task_id not in last_row:
                tell("resumed", task_id, f"at row {row}")
            self.sleep(0.1)
            with self.shield():  # a row is written whole or not at all
                out.write(f"{row}\n")
                out.flush()
            last_row[task_id] = row


def export_file(task_id: str) -> Path:
    """Where an export goes."""
    return Path(os.environ["DEMO_FOLDER"], f"{task_id}.csv")


@app.task(base=GracefulTask, bind=True, name="call_carrier")
def call_carrier(self: GracefulTask) -> str:
    """Ask a slow HTTP service; there is no harm in asking again."""
    with self.interruptible(), urllib.request.urlopen(os.environ["DEMO_SERVICE"]) as answer:
        return str(answer.read().decode())


@app.task(base=GracefulTask, name="rebuild_index")
def rebuild_index() -> None:
    """Work for twelve seconds, and know nothing of interrupts: the soft deadline ends it."""
    for _ in range(120):
        time.sleep(0.1)


@app.task(name="resize_photos")
def resize_photos() -> None:
    """Work for 14 seconds and swallow whatever is raised: it has to be given up.

    That is more than a grace period and what passes before the stop: plain Celery never gets there.
    """
    end = time.monotonic() + 14
    while time.monotonic() < end:
        try:
            time.sleep(0.1)
        except BaseException:
            pass


@app.task(name="send_mail")
def send_mail() -> None:
    """One of many short ones."""
    time.sleep(0.5)


@app.task(name="send_reminder")
def send_reminder() -> None:
    """Sent with a countdown: the worker holds it until its time has come."""
    time.sleep(0.1)


# -- told to the demo --------------------------------------------------------------


@celery_signals.task_received.connect
def _on_received(request: Any, **_: Any) -> None:
    tell("received", request.id)


@celery_signals.task_prerun.connect
def _on_started(task_id: str, **_: Any) -> None:
    tell("started", task_id)


@celery_signals.task_success.connect
def _on_finished(sender: Any, **_: Any) -> None:
    tell("finished", sender.request.id)


@celery_signals.task_failure.connect
def _on_failed(task_id: str, exception: BaseException, **_: Any) -> None:
    tell("failed", task_id, repr(exception))


@signals.task_interrupted.connect
def _on_interrupted(task_id: str, given_up: bool, **_: Any) -> None:
    interrupt = current_interrupt()
    if given_up:
        how = "by the hard deadline, given up"
    elif interrupt is not None and interrupt.phase >= Phase.SOFT:
        how = "by the soft deadline"
    else:
        how = "at a safe point"
    if task_id in last_row:
        how += f", after row {last_row[task_id]}"
    tell("interrupted", task_id, how)
