"""Waits until a batch has ended."""

from __future__ import annotations

import time
from collections.abc import Callable

from celery.exceptions import TimeoutError

from celery_graceful.batches.progress import Bar
from celery_graceful.batches.status import Status
from celery_graceful.runs.interrupt import sleep

__all__ = ["wait_until_over"]

#: Seconds between two looks: the first ones, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0


def wait_until_over(
    batch: object, look: Callable[[], Status], title: str, timeout: float | None, *, progress: bool
) -> Status:
    """Wait until all of a batch has ended; in a graceful task a safe point, as ``sleep`` is.

    Args:
        batch: The batch, as people know it.
        look: Says how it stands.
        title: Of the bar.
        timeout: Seconds; ``None`` for as long as it takes.
        progress: Draw a bar on the terminal, if there is one.

    Raises:
        celery.exceptions.TimeoutError: It has not ended in time.
        Interrupted: The task that waits has to stop.
        Exception: What ``look`` raises.
    """
    end = None if timeout is None else time.monotonic() + timeout
    pause = FIRST_PAUSE
    with Bar(title, wanted=progress) as bar:
        while True:
            status = look()
            ended = status.total - status.pending
            more = f"  {status.failed} failed" if status.failed else ""
            over = status.finished is not None
            bar.draw(ended, status.total, more, last=over)
            if over:
                return status
            left = LONGEST_PAUSE if end is None else end - time.monotonic()
            if left <= 0:
                raise TimeoutError(
                    f"{batch!r} has not ended in {timeout:g} s: {status.pending} of "
                    f"{status.total} members are pending, {status.missing} are missing; it is "
                    f"{status.state.value}"
                )
            sleep(min(pause, left))
            pause = min(pause * 1.5, LONGEST_PAUSE)
