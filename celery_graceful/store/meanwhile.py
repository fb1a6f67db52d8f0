"""What a store is told again and again, as long as something takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from celery_graceful.store.store import StoreAway

__all__ = ["meanwhile"]


@contextmanager
def meanwhile(call: Callable[[], object], every: float, name: str) -> Iterator[None]:
    """Call something each ``every`` seconds, in a thread, until the block is left.

    Args:
        call: Tells a store; where that is away, it is called again all the same.
        every: Seconds.
        name: Of the thread.
    """
    over = threading.Event()

    def run() -> None:
        while not over.wait(every):
            with suppress(StoreAway):  # said there
                call()

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        yield
    finally:
        over.set()
