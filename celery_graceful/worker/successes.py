"""Celery's set of what has succeeded lately, without a look through it for each task that ends.

It is asked for where a connection is lost, and where tasks are not to run twice
(``worker_deduplicate_successful_tasks``). To keep it in order is slow, and may not be done by two
threads at once, so that is done for who asks.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from celery.utils.collections import LimitedSet

from celery_graceful.system.process import Slot, emptied

__all__ = ["gather", "is_gathered", "scatter"]


class _Sorting:
    """Who puts them in order, one at a time; who asks meanwhile waits, and finds all of them."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # Celery's own methods ask, too
        self.is_under_way = False


_sorting = Slot("sorting of successes", _Sorting, in_fork=emptied)


class _Gathered(LimitedSet):
    """As Celery's, with what was added last beside it."""

    added: deque[tuple[Any, float]]

    def add(self, item: Any, now: float | None = None) -> None:
        """From any thread."""
        self.added.append((item, time.monotonic() if now is None else now))

    @property
    def _data(self) -> Any:
        sorting = _sorting.value
        with sorting.lock:
            if self.added and not sorting.is_under_way:
                sorting.is_under_way = True
                try:
                    while self.added:
                        LimitedSet.add(self, *self.added.popleft())
                finally:
                    sorting.is_under_way = False
            return vars(self)["_data"]

    def __reduce__(self) -> Any:
        return LimitedSet, super().__reduce__()[1]


def gather(ids: LimitedSet) -> None:
    """Let a set of Celery's keep what is added beside it, until somebody asks."""
    if type(ids) is LimitedSet:
        ids.added = deque(maxlen=ids.maxlen or None)  # older ones would have no room in it either
        ids.__class__ = _Gathered


def is_gathered(ids: LimitedSet) -> bool:
    """Whether it is such a set."""
    return type(ids) is _Gathered


def scatter(ids: LimitedSet) -> None:
    """It is a set as ever again."""
    if is_gathered(ids):
        with _sorting.value.lock:
            assert ids._data is not None  # puts in order what has been added
            ids.__class__ = LimitedSet
