"""Tasks that are registered when the worker runs already."""

from __future__ import annotations

from celery import signals
from celery.app.trace import build_tracer

from celery_graceful import Graceful, GracefulTask
from tests.apps import make_app, say

app = make_app("late")
app.conf.worker_pool_restarts = True
Graceful(app)
workers = []


@signals.worker_ready.connect
def on_ready(sender, **_):
    workers.append(sender)


@signals.worker_process_init.connect
def on_child(**_):
    say("child")


@app.task(name="import_plugin", base=GracefulTask)
def import_plugin():
    """As plug-in systems do."""
    import tests.apps.late_plugin  # noqa: F401

    say("imported")


@app.task(name="build_by_hand", base=GracefulTask)
def build_by_hand():
    """As some do who want no new connection for it: past all that Celery offers."""
    from tests.apps.late_plugin import by_hand as task

    consumer = workers[0]
    consumer.strategies[task.name] = task.start_strategy(app, consumer)
    task.__trace__ = build_tracer(task.name, task, app.loader, consumer.hostname, app=app)
    say("imported")
