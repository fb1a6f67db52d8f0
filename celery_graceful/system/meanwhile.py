"""Something that is said again and again, as long as something else takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["meanwhile"]


@contextmanager
def meanwhile(call: Callable[[], None], every: float, name: str) -> Iterator[None]:
    """Call something each ``every`` seconds, in a thread, until the block is left.

    Args:
        call: Raises nothing.
        every: Seconds.
        name: Of the thread.
    """
    over = threading.Event()

    def run() -> None:
        while not over.wait(every):
            call()

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        yield
    finally:
        over.set()
