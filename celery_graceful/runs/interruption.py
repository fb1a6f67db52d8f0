"""Which of the exceptions that end a task are interruptions."""

from __future__ import annotations

import math
import signal
from typing import Any
from weakref import WeakSet

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from celery_graceful.exceptions import (
    CheckpointError,
    Interrupted,
    ShutdownTimeLimit,
    TooManyInterruptions,
)
from celery_graceful.phases import Interrupt, InterruptReason
from celery_graceful.runs.interrupt import wait_for_interrupt
from celery_graceful.runs.run import FROM_OUTSIDE, Run
from celery_graceful.system.exception_chain import chain, parts
from celery_graceful.system.loaded import is_instance, loaded
from celery_graceful.timeline.worker_state import WorkerInterrupt

__all__ = ["CANCELLED_FOR", "cancelled", "interrupt_in", "is_of_cancellation"]

#: What our cancellations of coroutines say, by what they are for: others cancel them, too.
CANCELLED_FOR: dict[type[BaseException], str] = {
    Interrupted: "the task is interrupted",
    ShutdownTimeLimit: "the worker's soft deadline has passed",
    SoftTimeLimitExceeded: "the task's soft time limit has passed",
}

#: Runs with a coroutine that was cancelled for an interrupt, which no block has raised yet.
cancelled: WeakSet[Run] = WeakSet()

#: With these a task, or a checkpoint of it, has said how it ends.
_OUTCOMES = (Ignore, Reject, Retry, CheckpointError, TooManyInterruptions)

#: Where exceptions of others keep the exit status of a child process.
_STATUS = ("returncode", "retcode", "exit_code", "exitcode", "exit_status", "status")

#: As ``subprocess`` and as shells say it.
_TOLD_TO_END = frozenset(
    status for number in (signal.SIGTERM, signal.SIGINT) for status in (-number, 128 + number)
)

#: Of an ``Interrupted`` that was made by hand.
_UNKNOWN = WorkerInterrupt(InterruptReason.SHUTDOWN, math.inf)

#: Seconds that the news of a stop may take. A signal to a process group ends a task's child
#: process before the worker has told its own.
NEWS = 1.0


def interrupt_in(exc: BaseException, run: Run) -> Interrupt | None:
    """The interrupt that ended ``run``; ``None`` if something else did.

    Args:
        exc: What left the task, or what it asks for a retry with.
        run: The run.
    """
    if isinstance(exc, Interrupted):
        return exc.interrupt or run.interrupt or _UNKNOWN
    if run in cancelled and _is_cancellation(exc):  # past the block, which is left later, or never
        return run.interrupt or _UNKNOWN
    if isinstance(exc, _OUTCOMES) or not (isinstance(exc, Exception) or parts(exc)):
        return None
    links = list(chain(exc))
    interrupt = run.interrupt
    # One that came as somebody else's result says nothing about this run.
    if (run.raised or interrupt) and any(
        _is_raised(one, parts(exc)) or _is_cancelled_for(one, interrupt) for one in links
    ):
        told = [one.interrupt for one in links if isinstance(one, Interrupted) and one.interrupt]
        return told[0] if told else interrupt or _UNKNOWN
    if any(map(_child_was_told_to_end, links)) and (interrupt or wait_for_interrupt(NEWS)):
        return run.interrupt
    return None


def is_of_cancellation(exc: BaseException, run: Run) -> bool:
    """Whether it is what code has made of our cancellation of a coroutine for an interrupt.

    Args:
        exc: What left the coroutine.
        run: The run that was cancelled.
    """
    if isinstance(exc, (*_OUTCOMES, *FROM_OUTSIDE)):
        return False
    interrupt = run.interrupt
    return any(_is_cancelled_for(one, interrupt) for one in chain(exc))


def _is_cancelled_for(exc: BaseException, interrupt: Interrupt | None) -> bool:
    """Whether it is a cancellation of ours, for an interruption; as of ``_is_raised``."""
    if not is_instance(exc, "asyncio", "CancelledError"):
        return False
    if exc.args == (CANCELLED_FOR[Interrupted],):
        return interrupt is None or interrupt.reason is not InterruptReason.REVOKED
    return exc.args == (CANCELLED_FOR[ShutdownTimeLimit],)


def _is_cancellation(exc: BaseException) -> bool:
    """Also that of a coroutine in another thread, which says nothing of its own."""
    return any(
        is_instance(exc, module, "CancelledError") for module in ("asyncio", "concurrent.futures")
    )


def _is_raised(exc: BaseException, group: list[BaseException]) -> bool:
    """Whether it is what is raised in a task that has to stop."""
    if isinstance(exc, Interrupted) and exc not in group:
        # A revoked task ends here in any case: one that fails at that has failed.
        return exc.interrupt is None or exc.interrupt.reason is not InterruptReason.REVOKED
    return isinstance(exc, (Interrupted, ShutdownTimeLimit))


def _child_was_told_to_end(exc: BaseException) -> bool:
    """Whether it says that a child process has died of SIGTERM or SIGINT, or not of what."""
    broken = loaded("concurrent.futures.process", "BrokenProcessPool")
    if broken is not None and isinstance(exc, broken):
        return True
    return any(_status(exc, name) in _TOLD_TO_END for name in _STATUS)


def _status(exc: BaseException, name: str) -> int | None:
    try:
        found: Any = getattr(exc, name, None)
    except Exception:  # a property of somebody else's
        return None
    return found if type(found) is int else None
