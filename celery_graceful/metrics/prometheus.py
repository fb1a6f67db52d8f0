"""The numbers as Prometheus has them: a collector in a registry, and the page that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from celery.utils.imports import symbol_by_name
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import (
    Metric as Family,
)
from prometheus_client.utils import floatToGoString

from celery_graceful.exceptions import SettingsError
from celery_graceful.metrics.catalog import CATALOG, Kind, Metric
from celery_graceful.metrics.counts import SUM, Key, Numbers
from celery_graceful.system import native

__all__ = ["Prometheus"]


class Prometheus:
    """The collector of one worker, in a registry.

    A number that comes up for the first time is shown as 0 once, and from the next time on as what
    it is: for Prometheus nothing has increased that it has never seen lower.

    Args:
        numbers: What the worker has counted.
        gauges: How it is just now.
        is_here: Whether it is this process's; a child of it has inherited this.
        collected: Told that somebody has collected.
        registry: Name of the user's, as ``module:attribute``; ``None`` for one of its own.

    Raises:
        SettingsError: There is no such registry, or another worker of the process is in it.
    """

    def __init__(
        self,
        numbers: Callable[[], Numbers],
        gauges: Callable[[], Numbers],
        is_here: Callable[[], bool],
        collected: Callable[[], None],
        registry: str | None = None,
    ) -> None:
        self._numbers, self._gauges = numbers, gauges
        self._is_here, self._collected = is_here, collected
        self._lock = native.Lock()
        #: What was shown last.
        self._shown: Numbers = {}
        #: Somebody has collected.
        self.is_seen = False
        self.registry = CollectorRegistry() if registry is None else load_registry(registry)
        try:
            self.registry.register(self)
        except ValueError as exc:
            why = f"it has such metrics, of another worker of this process or of yours: {exc}"
            raise SettingsError("graceful_prometheus_registry", registry, f"{why:.200}") from exc

    def page(self) -> tuple[str, str]:
        """The page that Prometheus reads, and the type of its content."""
        return generate_latest(self.registry).decode(), CONTENT_TYPE_PLAIN_0_0_4

    def unseen(self) -> Numbers:
        """What has been counted since somebody collected."""
        shown = dict(self._shown)
        left = {key: number - shown.get(key, 0) for key, number in self._numbers().items()}
        return {key: number for key, number in left.items() if number}

    def end(self) -> None:
        """The worker ends, and the process may go on."""
        try:
            self.registry.unregister(self)
        except KeyError:
            pass  # the user has

    # -- as a registry has it ----------------------------------------------------------

    def describe(self) -> Iterator[Family]:
        """All that may come, without numbers."""
        return (_family(metric, {}) for metric in CATALOG)

    def collect(self) -> Iterator[Family]:
        """All that there is; nothing in a process that has only inherited it."""
        if not self._is_here():
            return iter(())
        families = self._families()
        self._collected()
        return iter(families)

    def _families(self) -> list[Family]:
        numbers, gauges = self._numbers(), self._gauges()
        with self._lock:
            self.is_seen = True
            for key in numbers.keys() - self._shown.keys():
                if _has_labels(key):
                    numbers[key] = 0
            self._shown = dict(numbers)
        numbers.update(gauges)
        by_name: dict[str, Numbers] = {}
        for key, number in numbers.items():
            by_name.setdefault(key[0], {})[key[1:]] = number
        return [_family(metric, by_name.get(metric.name, {})) for metric in CATALOG]


def _has_labels(key: Key) -> bool:
    return len(key) > 1 and key[0] not in _HISTOGRAMS


_HISTOGRAMS = {metric.name for metric in CATALOG if metric.kind is Kind.HISTOGRAM}


def _family(metric: Metric, numbers: Numbers) -> Family:
    name = metric.prometheus
    if metric.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(name, metric.help)
        if numbers:
            total, buckets = 0.0, []
            for bound in [*map(str, metric.buckets), "inf"]:
                total += numbers.get((bound,), 0)
                buckets.append((floatToGoString(float(bound)), total))
            histogram.add_metric([], buckets, numbers.get((SUM,), 0))
        return histogram
    kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = kind(name, metric.help, labels=metric.labels)
    for labels, number in sorted(numbers.items()):
        family.add_metric(labels, number)
    return family


def load_registry(name: str) -> Any:
    """The user's registry.

    Args:
        name: As ``module:attribute``.

    Raises:
        SettingsError: There is none.
    """
    try:
        registry = symbol_by_name(name)
    except (ImportError, AttributeError) as exc:
        mend = f"name one that is there, as module:attribute: {exc}"
        raise SettingsError("graceful_prometheus_registry", name, mend) from exc
    if not all(hasattr(registry, method) for method in ("register", "unregister", "collect")):
        mend = f"name a CollectorRegistry, not a {type(registry).__name__}"
        raise SettingsError("graceful_prometheus_registry", name, mend)
    return registry
