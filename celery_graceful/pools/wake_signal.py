"""The signal that makes a thread in a blocking call look at the phase.

SIGURG: it is ignored by default, billiard and Celery leave it alone, and Go's runtime uses
it for the same purpose (golang.org/design/24543-non-cooperative-preemption).

It can be lost: Python runs handlers between two instructions, so one that comes when the last
instruction before a blocking call has begun waits for the end of that call. Hence who has looked
says so on the board, and who has not is signalled again.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from celery_graceful.runs import interrupt
from celery_graceful.runs.lock_steps import SOON, is_at_lock
from celery_graceful.runs.run import current, make
from celery_graceful.system import native
from celery_graceful.timeline import worker_state

__all__ = ["AGAIN", "LONGER", "SIGNAL", "install", "look"]

SIGNAL = signal.SIGURG

#: Seconds until those who have not heard are signalled again; each time that many times as long.
AGAIN, LONGER = 0.02, 4.0

#: The one of ``threading`` waits until the other one runs: another signal may be handled there.
_start_thread = native.original("_thread", "start_new_thread")


def look(_: int, frame: FrameType | None) -> None:
    """Signal handler: raise what is due in the run that was interrupted, if any."""
    board, pid = worker_state.board.value, os.getpid()
    if board is not None:
        board.set_heard(pid, True)  # first: what is sent after this look shall count as unheard
    interrupt.wake()
    run = current()
    if run is not None and is_at_lock(frame):
        _start_thread(_again, (threading.get_ident(),))
    elif run is not None:
        due = run.take_due(blocking=False)
        if run.looks_later and board is not None:
            board.set_heard(pid, False)
        if due is not None:
            raise make(due, run)


def _again(main: int) -> None:
    native.pause(SOON)
    signal.pthread_kill(main, SIGNAL)


def install() -> bool:
    """Install the handler, in the main thread; whether this is it."""
    if not native.in_main_thread():
        return False
    signal.signal(SIGNAL, look)
    return True
