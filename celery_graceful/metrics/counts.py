"""The numbers of one worker: what has happened, how often, and how long it took.

A number is known by the name of its metric and the values of its labels. That of a histogram is
known by its bucket instead, or is the ``sum``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from celery_graceful.metrics.catalog import BY_NAME, Kind
from celery_graceful.system import native
from celery_graceful.system.process import Slot, emptied

__all__ = ["SUM", "Counts", "Key", "Numbers", "added", "current", "from_json", "to_json"]

Key = tuple[str, ...]
Numbers = dict[Key, float]

#: Where the sum of a histogram stands.
SUM = "sum"


class Counts:
    """Those of one worker, since its start.

    Args:
        elsewhere: What is counted by others, such as children: by name of the metric and labels.
    """

    def __init__(self, elsewhere: Callable[[], Mapping[Key, float]] = dict) -> None:
        self._elsewhere = elsewhere
        self._lock = native.Lock()
        self._numbers: Numbers = {}
        for metric in BY_NAME.values():  # what may be missed before it happens for the first time
            if metric.kind is Kind.COUNTER and not metric.labels:
                self._numbers[metric.name,] = 0
            elif metric.kind is Kind.HISTOGRAM:
                bounds = [*map(str, metric.buckets), "inf", SUM]
                self._numbers.update({(metric.name, bound): 0 for bound in bounds})

    def add(self, name: str, *labels: str, number: float = 1) -> None:
        """It has happened. From any thread."""
        self._add({(name, *labels): number})

    def observe(self, name: str, value: float) -> None:
        """A histogram gets one more."""
        bound = next((str(most) for most in BY_NAME[name].buckets if value <= most), "inf")
        self._add({(name, bound): 1, (name, SUM): value})

    def _add(self, numbers: Mapping[Key, float]) -> None:
        with self._lock:
            self._numbers = added(self._numbers, numbers)

    def all(self) -> Numbers:
        """All of them, as they are now."""
        return added(self._numbers, self._elsewhere())


def added(one: Mapping[Key, float], other: Mapping[Key, float]) -> Numbers:
    """Both together."""
    found = dict(one)
    for key, number in other.items():
        found[key] = found.get(key, 0) + number
    return found


def to_json(numbers: Mapping[Key, float]) -> str:
    """For who takes them over."""
    return json.dumps([[*key, number] for key, number in numbers.items()], separators=(",", ":"))


def from_json(text: str) -> Numbers:
    """What was left, without what is not known here, such as metrics of a later version."""
    found: Numbers = {}
    entries: Any = json.loads(text)
    for *key, number in entries:
        metric = BY_NAME.get(key[0])
        if metric is None or metric.kind is Kind.GAUGE:
            continue
        if len(key) == 1 + (len(metric.labels) if metric.kind is Kind.COUNTER else 1):
            found[tuple(map(str, key))] = float(number)
    return found


#: Of the workers whose main process this is. What a child has of it in memory is its parent's.
current: Slot[Counts | None] = Slot("counts", lambda: None, in_fork=emptied)
