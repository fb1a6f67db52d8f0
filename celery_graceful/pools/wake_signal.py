"""The signal that makes a thread in a blocking call look at the phase.

SIGURG: it is ignored by default, billiard and Celery leave it alone, and Go's runtime uses
it for the same purpose (golang.org/design/24543-non-cooperative-preemption).
"""

from __future__ import annotations

import signal
from typing import Any

from celery_graceful.runs import interrupt
from celery_graceful.runs.run import current, make
from celery_graceful.system import native

__all__ = ["SIGNAL", "install", "look"]

SIGNAL = signal.SIGURG


def look(*_: Any) -> None:
    """Signal handler: raise what is due in the run that was interrupted, if any."""
    interrupt.wake()
    run = current()
    if run is not None:
        due = run.take_due(blocking=False)
        if due is not None:
            raise make(due, run)


def install() -> bool:
    """Install the handler, in the main thread; whether this is it."""
    if not native.in_main_thread():
        return False
    signal.signal(SIGNAL, look)
    return True
