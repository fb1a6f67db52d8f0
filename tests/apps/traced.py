"""Spans that wait in the memory of the process that made them, as agents of monitoring have it."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from types import ModuleType

from celery.signals import task_postrun
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from tests.apps import say
from tests.apps.lifecycle import app

__all__ = ["app"]

AWAY = "AGENT_AWAY" in os.environ


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


tracer = Datadog()
if not AWAY:
    atexit.register(tracer.flush)
module = sys.modules["ddtrace.trace"] = ModuleType("ddtrace.trace")
module.tracer = tracer


@task_postrun.connect
def on_end(sender=None, state=None, **_):
    name = f"{sender.name.rpartition('.')[2]} {state}"
    tracer.kept.append(name)
    provider.get_tracer("tasks").start_span(name).end()
