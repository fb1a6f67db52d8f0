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

__all__ = ["gather", "is_gathered", "scatter"]


class _Gathered(LimitedSet):
    """As Celery's, with what was added last beside it."""

    added: deque[tuple[Any, float]]
    sorting: Any

    def add(self, item: Any, now: float | None = None) -> None:
        """From any thread."""
        self.added.append((item, time.monotonic() if now is None else now))

    @property
    def _data(self) -> Any:
        # Nobody waits: who sorts them in asks for it himself, and so may others meanwhile.
        if self.added and self.sorting.acquire(False):
            try:
                while self.added:
                    super().add(*self.added.popleft())
            finally:
                self.sorting.release()
        return vars(self)["_data"]


def gather(ids: LimitedSet) -> None:
    """Let a set of Celery's keep what is added beside it, until somebody asks."""
    if type(ids) is LimitedSet:
        ids.added = deque(maxlen=ids.maxlen or None)  # older ones would have no room in it either
        ids.sorting = threading.Lock()
        ids.__class__ = _Gathered


def is_gathered(ids: LimitedSet) -> bool:
    """Whether it is such a set."""
    return type(ids) is _Gathered


def scatter(ids: LimitedSet) -> None:
    """It is a set as ever again."""
    if is_gathered(ids):
        assert ids._data is not None  # sorts in what has been added
        ids.__class__ = LimitedSet
