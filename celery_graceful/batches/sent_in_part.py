"""What is said of a batch of which only a part was sent, or all of it was before."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from celery.utils.log import get_logger

from celery_graceful.batches.model import SENT_LATER, State
from celery_graceful.batches.status import Status
from celery_graceful.exceptions import BatchFinished, Interrupted
from celery_graceful.system.describe import describe

__all__ = [
    "how_to_go_on",
    "say_changed",
    "say_it_stays",
    "say_left",
    "say_unsent",
    "sent_before",
    "sent_by_another",
    "sent_whole",
]

logger = get_logger(__name__)

#: How one is gone on with: by itself, by another one, with what it is inside of, or by the task
#: that adds it.
RESUME = "Go on with Batch.load(id).resume(members)"
RESUME_KEYED = "Go on with apply_async(members) of one with the same key"
RESUME_OUTER = "Go on with resume() of the one that it is inside of, or of itself"
SEND_ANEW = "Send another one like it"
RUN_AGAIN = "This task goes on with it if it is run again, and adds one like it; resume it by hand"

#: Batches that are named in one message.
NAMED = 5


def how_to_go_on(*, added: bool, inside: str | None, key: str) -> str:
    """How a batch is gone on with of which a part was sent.

    Args:
        added: A task adds it to what it is inside of.
        inside: Of which one.
        key: Its user's.
    """
    return RUN_AGAIN if added else RESUME_OUTER if inside else RESUME_KEYED if key else RESUME


def say_it_stays(batch: object, sent: int, exc: BaseException, mend: str) -> None:
    """Not all of it was sent: in the log, and beside the error.

    Args:
        batch: The batch, as people know it.
        sent: How many members were.
        exc: Why no more.
        mend: How it is gone on with.
    """
    stays = f"{batch!r} stays in state sending, with {sent} members sent"
    mend = f"{mend}, or end it with cancel() or drop()"
    level = logging.INFO if isinstance(exc, Interrupted) else logging.ERROR
    said = describe(exc) if isinstance(exc, Exception) else type(exc).__name__
    logger.log(level, "%s: %s. %s", stays, said, mend)
    if hasattr(exc, "add_note"):  # since Python 3.11
        exc.add_note(f"{stays}. {mend}")


def say_unsent(status: Status, now: float) -> str:
    """That the producer of a batch has died, or failed, and how it is mended.

    Args:
        status: Of the batch, which is being sent.
        now: Seconds, by the clock of what it says.
    """
    named = ", ".join(filter(None, (status.key, status.description)))
    who = (
        "has stopped"
        if status.heard is None
        else f"was last heard of {now - status.heard:.0f} s ago"
    )
    mend = f"Run it again with the key {status.key!r}" if status.key else f"{RESUME} of that id"
    if status.kind == "chord":
        mend = SEND_ANEW
    return (
        f"{status.kind.capitalize()} {status.id}{named and f' ({named})'} is not complete, "
        f"and no callback of it comes: its producer {who}, with {status.total} members sent, "
        f"{status.pending} of them pending. "
        f"{mend}, or cancel or drop it; if those are all of its members: "
        f"celery graceful batches resend {status.id} --close"
    )


def say_changed(batch: str, gone: int, new: int) -> None:
    """It was sent again, and its members are not those of before.

    Args:
        batch: Its id.
        gone: How many that are registered were not given again.
        new: How many were sent that are not registered, and have no ids of their own.
    """
    logger.warning(
        "Batch %s: %d members that are registered were not given again, and %d are new, and were "
        "sent: what stands in another place than before, or has changed, is sent a second time. "
        'Give the same members in the same order, or each an id of its own: .set(task_id="...")',
        batch,
        gone,
        new,
    )


def say_left(batch: object, left: Sequence[str]) -> None:
    """It was sent again, without some that are inside of it."""
    if left:
        logger.warning(
            "%r: %d batches inside of it were begun before, and not given again as they were: %s. "
            "They are cancelled once they stand still; Batch.load(id).resume(members) goes on "
            "with one",
            batch,
            len(left),
            ", ".join(sorted(left)[:NAMED]) + (", ..." if len(left) > NAMED else ""),
        )


def sent_whole(batch: str, exc: BatchFinished) -> BatchFinished:
    """Why a batch is not gone on with."""
    if exc.state != State.SENT:
        return exc
    why = (
        "all of it was sent, there is nothing to go on with; one inside of it of which only a part "
        "was is gone on with by its own resume()"
    )
    return BatchFinished(batch, exc.state, why)


def sent_by_another(batch: str, key: str) -> BatchFinished:
    """Why one is not sent whose key another one has."""
    why = f"another producer is sending the batch of the key {key!r}, and is alive"
    return BatchFinished(batch, State.SENDING.value, why)


def sent_before(batch: str, state: State | None) -> BatchFinished:
    """Why a batch is not sent, which is in that state, or not known."""
    if state is None:
        why = "Batch.load is for one that was sent: for a new one say Batch(...)"
    elif state in SENT_LATER:
        why = "a part of it was sent: go on with resume(members)"
    else:
        why = "it was sent before; make a new one for what is still to be done"
    return BatchFinished(batch, "sent" if state is None else state.value, why)
