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
        #: Those that have ever been there; most of the others never are.
        self._likely: tuple[str, ...] = ()

    def any_of(self, keys: Collection[str], age: float) -> bool:
        """Whether one of the keys exists, or did up to ``age`` seconds ago.

        Raises:
            Exception: What ``count`` raised.
        """
        answer, now = self._answer, time.monotonic()
        if now - answer.asked_at > age or not set(answer.keys).issuperset(keys):
            # Two threads that ask at once may each forget a key of the other, until it asks again.
            names = tuple(dict.fromkeys((*answer.keys, *keys)))
            answer = self._answer = _Answer(now, names, self._ask(names))
        return not answer.present.isdisjoint(keys)

    def _ask(self, names: Sequence[str]) -> frozenset[str]:
        likely = tuple(key for key in names if key in self._likely)
        others = tuple(key for key in names if key not in likely)
        each = 1 << len(likely)
        counted = self._count([*_in_bits(likely), *(k for k in others for _ in range(each))])
        present = _from_bits(likely, counted % each)
        if counted >= each:
            present |= _from_bits(others, self._count(_in_bits(others)))
            self._likely = tuple(dict.fromkeys((*self._likely, *sorted(present))))
        return present


def _in_bits(keys: Sequence[str]) -> list[str]:
    """One number says it of each: a key is named twice as often as the one before."""
    return [key for bit, key in enumerate(keys) for _ in range(1 << bit)]


def _from_bits(keys: Sequence[str], counted: int) -> frozenset[str]:
    return frozenset(key for bit, key in enumerate(keys) if counted >> bit & 1)
