"""Which keys are there: several who look for theirs now and then ask together.

An idle worker looks for what others may have left: messages that wait, failures that nobody has
told, batches, a place that is free. Who asks first asks for the keys of the others as well, and
they need not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

__all__ = ["Presence"]


class _Answer(NamedTuple):
    asked_at: float
    keys: Sequence[str]
    present: frozenset[str]


class Presence:
    """Remembers which keys there were when it last asked, for every thread of a process.

    Args:
        count: How many of some keys exist, each as often as it is named (``EXISTS``).
    """

    def __init__(self, count: Callable[[Sequence[str]], int]) -> None:
        self._count = count
        self._answer = _Answer(0.0, (), frozenset())

    def any_of(self, keys: Collection[str], age: float) -> bool:
        """Whether one of the keys exists, or did up to ``age`` seconds ago.

        Raises:
            Exception: What ``count`` raised.
        """
        answer, now = self._answer, time.monotonic()
        if now - answer.asked_at > age or not set(answer.keys).issuperset(keys):
            # Two threads that ask at once may each forget a key of the other, until it asks again.
            names = tuple(dict.fromkeys((*answer.keys, *keys)))
            # One number says it of each: a key is named twice as often as the one before.
            counted = self._count([key for bit, key in enumerate(names) for _ in range(1 << bit)])
            present = frozenset(key for bit, key in enumerate(names) if counted >> bit & 1)
            answer = self._answer = _Answer(now, names, present)
        return not answer.present.isdisjoint(keys)
