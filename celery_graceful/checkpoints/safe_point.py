"""Safe points: where a task that stands there may be stopped, and is."""

from __future__ import annotations

import math
import time

from celery_graceful.checkpoints.checkpoint import Checkpoint
from celery_graceful.exceptions import Interrupted
from celery_graceful.phases import Interrupt, InterruptReason
from celery_graceful.runs.interrupt import current_interrupt
from celery_graceful.runs.run import current
from celery_graceful.store.store import COMMAND_TIMEOUT
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.worker_state import WorkerInterrupt

__all__ = ["bounded_timeout", "pending_interrupt", "stand"]

#: Seconds until a task whose run time is over, and whose state could not be saved, tries again.
POSTPONED = 1.0


def pending_interrupt(checkpoint: Checkpoint, run_time_at: float) -> Interrupt | None:
    """What would stop the running task if it stood at a safe point.

    Args:
        checkpoint: The task's.
        run_time_at: When its ``max_run_time`` is over, on the monotonic clock.
    """
    run = current()
    if run is None or not run.graceful or run.shielded:
        return None
    if worker_state.flag.value[0] and (interrupt := current_interrupt()) is not None:
        return interrupt
    # A task that has done nothing would come back to the same place, for ever.
    over = checkpoint.advanced and time.monotonic() >= run_time_at
    if over and checkpoint.store is not None:
        return WorkerInterrupt(InterruptReason.RUN_TIME, math.inf)
    return None


def bounded_timeout(interrupt: Interrupt | None) -> float:
    """Seconds that the store gets at an interrupt: a small part of what is left.

    In tenths: the store has connections of its own for each time-out, and many tasks stop at once.
    """
    left = math.inf if interrupt is None else interrupt.time_left()
    return max(1, int(10 * min(COMMAND_TIMEOUT, left / 4))) / 10


def stand(checkpoint: Checkpoint, run_time_at: float) -> float:
    """Stop the task here if it has to.

    Returns:
        When its ``max_run_time`` is over, on the monotonic clock: later than before, if it
        has to go on because what it did could not be saved.

    Raises:
        Interrupted: It has to; everything that could be saved is.
    """
    interrupt = pending_interrupt(checkpoint, run_time_at)
    if interrupt is None:
        return run_time_at
    saved = checkpoint.save(timeout=bounded_timeout(interrupt), insist=True)
    if interrupt.reason is InterruptReason.RUN_TIME and not saved:
        return time.monotonic() + POSTPONED
    run = current()
    if run is not None:
        run.raised = True
    raise Interrupted(interrupt)
