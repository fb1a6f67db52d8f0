"""Several threads that do something at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.support.workers import TIMEOUT

__all__ = ["in_threads"]


def in_threads(count: int, call: Callable[[int], object]) -> None:
    """Call `call(number)` in so many threads at once."""
    barrier = threading.Barrier(count)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        barrier.wait(TIMEOUT)
        try:
            call(number)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert failures == []
