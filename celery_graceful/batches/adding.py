"""A batch that becomes part of another one, and again before all of it is sent.

What a task adds when it is run again is, where it is alike, the one that it had begun: under the id
of that, with the members that it has. So none stays behind that nobody sends any more, and its
parent would wait for. Unless somebody does send it: another run of the task may be alive. Of what
is sent with its parent, that is the one in the same place.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from uuid import uuid4

from celery import current_task

from celery_graceful.batches.eager import EagerLedger
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.model import Adds, Opened
from celery_graceful.claims.fence import DELIVERY, holds_claim
from celery_graceful.exceptions import BatchFinished
from celery_graceful.runs.interrupt import sleep
from celery_graceful.store.meanwhile import meanwhile
from celery_graceful.store.store import StoreAway

__all__ = ["SAY_EVERY", "SILENT", "at_it", "check_is_ours", "new_sender", "opened", "who_adds"]

#: Seconds after which who sends a batch, and is not heard of, is dead; and between two times that
#: one says so.
SILENT, SAY_EVERY = 4.0, 1.0

#: Seconds for which one that may be dead is waited for, and between two looks.
PATIENCE, LOOK_AGAIN = SILENT + 1.0, 0.1


def new_sender() -> str:
    """By what somebody is known who sends a batch."""
    return secrets.token_hex(4)


def who_adds(like: str) -> Adds | None:
    """The running task, as who adds a batch that is like this; ``None`` where none runs."""
    request = current_task.request if current_task else None
    if request is None or request.id is None or request.is_eager:
        return None
    return Adds(request.id, like, str(getattr(request, DELIVERY, None) or uuid4()))


def opened(
    create: Callable[[float], Opened | None], alive: Callable[[], BatchFinished] | None = None
) -> Opened:
    """The batch that is sent now, when it is clear which one.

    In a graceful task it is a safe point while somebody else may still send it, or one like it.

    Args:
        create: Creates it, or finds the one; gets for how many seconds a sender may be silent.
        alive: Makes what is raised if that one is alive; without, ``create`` decides.

    Raises:
        Interrupted: The task has to stop.
        Exception: What ``create`` raises.
    """
    end = time.monotonic() + PATIENCE
    is_late = False
    while (found := create(0.0 if is_late and alive is None else SILENT)) is None:
        if is_late and alive is not None:
            raise alive()
        sleep(LOOK_AGAIN)
        is_late = time.monotonic() >= end
    return found


@contextmanager
def at_it(ledger: BatchLedger | EagerLedger, batch: str, sender: str) -> Iterator[None]:
    """Says that a batch is being sent, as long as the block takes; and when it is not any more.

    Args:
        ledger: That knows of it.
        batch: Its id.
        sender: Who sends it.
    """
    say = partial(ledger.still_sends, batch, sender)
    is_eager = isinstance(ledger, EagerLedger)
    try:
        with nullcontext() if is_eager else meanwhile(say, SAY_EVERY, "graceful-sending"):
            yield
    except BaseException:
        with suppress(StoreAway):  # said there; it is taken for dead, a while later
            say(False)
        raise


def check_is_ours(batch: str) -> None:
    """The running task may add to a batch, unless another worker has it by now.

    Raises:
        BatchFinished: It has: that run is the one that counts.
    """
    if current_task and not holds_claim(current_task):
        raise BatchFinished(batch, "sending")
