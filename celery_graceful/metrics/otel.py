"""The numbers as OpenTelemetry has them: instruments of the provider that the user has set.

They are made once in a process, and can not be taken back: they observe the worker that there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from opentelemetry import metrics as api

from celery_graceful.metrics.catalog import CATALOG, PREFIX, Kind, Metric
from celery_graceful.metrics.counts import Numbers
from celery_graceful.system.process import Owner, Slot, emptied
from celery_graceful.system.version import VERSION

__all__ = ["OpenTelemetry"]


class OpenTelemetry:
    """The numbers of one worker, for whoever observes its process.

    Args:
        numbers: All of them, as they are now.
        owner: Of what the process has from this worker.
    """

    def __init__(self, numbers: Callable[[], Numbers], owner: Owner) -> None:
        self.numbers = numbers
        owner.fill(_observed, self)
        if not _histograms:
            _histograms.update(_make())

    def observe(self, name: str, value: float) -> None:
        """A histogram gets one more."""
        _histograms[name].record(value)

    @staticmethod
    def flush(seconds: float) -> None:
        """The process ends: have the provider send what it has."""
        flush = getattr(api.get_meter_provider(), "force_flush", None)
        if flush is not None:
            flush(timeout_millis=seconds * 1000)


def _make() -> dict[str, Any]:
    """Make all instruments; the histograms, by their names."""
    meter, histograms = api.get_meter(PREFIX, VERSION), {}
    for metric in CATALOG:
        options: dict[str, Any] = {"unit": metric.unit, "description": metric.help}
        name = metric.opentelemetry
        if metric.kind is Kind.HISTOGRAM:
            options["explicit_bucket_boundaries_advisory"] = metric.buckets
            histograms[metric.name] = meter.create_histogram(name, **options)
        elif metric.kind is Kind.COUNTER:
            meter.create_observable_counter(name, [partial(_observe, metric)], **options)
        else:
            meter.create_observable_gauge(name, [partial(_observe, metric)], **options)
    return histograms


def _observe(metric: Metric, _: Any) -> Iterable[api.Observation]:
    worker = _observed.value
    if worker is None:
        return
    names = [f"{PREFIX}.{label}" for label in metric.labels]
    for key, number in worker.numbers().items():
        if key[0] == metric.name:
            yield api.Observation(number, dict(zip(names, key[1:], strict=True)))


#: What is recorded, by name: of this process, for as long as it lives.
_histograms: dict[str, Any] = {}

#: Whose numbers are observed. A child of the pool may have the provider's thread as well.
_observed: Slot[OpenTelemetry | None] = Slot("observed", lambda: None, in_fork=emptied)
