"""What a store is told again and again, as long as something takes.

By one thread for all that a process is at, which there is while it is at something: to start one
takes longer than most of what is done meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from celery_graceful.store.store import StoreAway
from celery_graceful.system.repeating import Repeating

__all__ = ["meanwhile"]


class _Calls:
    """Those that are made as often, by a thread of that name."""

    def __init__(self, every: float, name: str) -> None:
        self.calls: dict[object, Callable[[], object]] = {}
        self.calling = Repeating(self._call, every, name)

    def _call(self) -> bool:
        for call in list(self.calls.values()):
            with suppress(StoreAway):  # said there
                call()
        return bool(self.calls)


_here: dict[tuple[float, str], _Calls] = {}
os.register_at_fork(after_in_child=_here.clear)


@contextmanager
def meanwhile(call: Callable[[], object], every: float, name: str) -> Iterator[None]:
    """Call something each ``every`` seconds, in a thread, until the block is left.

    Args:
        call: Tells a store; where that is away, it is called again all the same.
        every: Seconds, and the first time after as many at most.
        name: Of the thread.
    """
    found = _here.get((every, name)) or _here.setdefault((every, name), _Calls(every, name))
    block = object()
    try:
        found.calls[block] = call
        with suppress(RuntimeError):  # at the end of an interpreter, where nothing takes long
            found.calling.begin()
        yield
    finally:
        found.calls.pop(block, None)
