"""Spans that wait in the memory of the process that made them, as agents of monitoring have it."""

from __future__ import annotations

import atexit
import os
import queue
import sys
import threading
import time
from types import ModuleType

from celery.signals import task_postrun
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from celery_graceful.system import telemetry
from tests.apps import say
from tests.apps.lifecycle import app

__all__ = ["app"]

AWAY, BUFFERED = "AGENT_AWAY" in os.environ, "BUFFERED" in os.environ

#: In place of a second: the machine may be slow.
telemetry.PATIENCE = 4.0 if AWAY or BUFFERED else 15.0
app.conf.graceful_exit_timeout = 15.0


class Said(SpanExporter):
    def export(self, spans):
        for span in spans:
            say("opentelemetry:", span.name)
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(Said(), schedule_delay_millis=600_000))
trace.set_tracer_provider(provider)


class Datadog:
    """Stands for ddtrace's, which sends every second, and in an exit handler."""

    def __init__(self):
        self.kept = []

    def flush(self):
        if AWAY:
            threading.Event().wait()
        while self.kept:
            say("datadog:", self.kept.pop())


class Buffer:
    """As a client of statsd has it: a thread sends now and then, and nobody knows of it."""

    def __init__(self):
        self.kept = queue.SimpleQueue()
        self.thread = None

    def append(self, name):
        if self.thread is None:
            self.thread = threading.Thread(target=self.run, daemon=True)
            self.thread.start()
        self.kept.put(name)

    def run(self):
        while True:
            name = self.kept.get()
            time.sleep(0.2)
            say("buffer:", name)


buffer = Buffer()
tracer = Datadog()
if not AWAY:
    atexit.register(tracer.flush)
module = sys.modules["ddtrace.trace"] = ModuleType("ddtrace.trace")
module.tracer = tracer


@task_postrun.connect
def on_end(sender=None, state=None, **_):
    name = f"{sender.name.rpartition('.')[2]} {state}"
    tracer.kept.append(name)
    if BUFFERED:
        buffer.append(name)
    provider.get_tracer("tasks").start_span(name).end()
