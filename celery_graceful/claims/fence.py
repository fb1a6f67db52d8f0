"""The fence between the end of a task and its result: whether its claim is still held.

A worker that was stopped (SIGSTOP, a paused machine, a partition) may wake up after others have
taken it for dead. What it then finishes has another run by now, and that one is what counts.
"""

from __future__ import annotations

from typing import Any

from celery.utils.log import get_task_logger

from celery_graceful.claims.claimant import FALLEN, WORKERS, claims_key, lease_key, tombstone_key
from celery_graceful.messages.own_headers import CLAIM, DELIVERY
from celery_graceful.store.app_stores import find_workers_store, settings_of
from celery_graceful.store.store import StoreAway
from celery_graceful.system.describe import describe
from celery_graceful.timeline import worker_state

__all__ = [
    "CLAIM",
    "DELIVERY",
    "claim_of",
    "holds_claim",
    "is_ours",
    "mark_left",
    "may_store",
    "still_mine",
    "was_taken_away",
]

logger = get_task_logger(__name__)

#: Seconds that Redis gets to answer.
TIMEOUT = 1.0

#: Under this name the context of a run keeps that it was interrupted.
_LEFT = "graceful_left"


def still_mine(task: Any, claim: str) -> bool:
    """Whether a claim is still held. No round trip while the lease is well inside its time.

    Where Redis does not answer it counts as held: then nobody else can have rescued it, unless
    they reach a Redis that we do not.

    Args:
        task: Of the app.
        claim: ``<worker>/<number>``. Without the number: whether any of that worker's are.
    """
    board = worker_state.board.value
    if board is None:
        return True
    if board.surely_holds(claim):  # as nearly always
        return True
    worker, _, number = claim.rpartition("/")
    held = worker_state.holds(worker)
    if held is not None:
        return held
    app = task.app  # not before: it is looked for
    store = find_workers_store(app, board.place_of(worker))
    if store is None:
        return True
    keys = [WORKERS, lease_key(worker), claims_key(worker), FALLEN, tombstone_key(worker)]
    args = [worker, int(settings_of(app).lease_ttl * 1000), number]
    try:
        return bool(store.run("still_mine", keys, args, timeout=TIMEOUT))
    except StoreAway as exc:  # said once, by the store
        logger.debug("Could not ask whether %s is still held: %s", claim, describe(exc))
        return True


def claim_of(task: Any, request: Any) -> str | None:
    """The claim of the delivery that ``task`` runs, for as long as it runs.

    What is acknowledged at its start has none any more: nobody else will run it.

    Args:
        task: The task.
        request: Its context; who has it already is spared looking for it.
    """
    return getattr(request, CLAIM, None) if task.acks_late else None


def is_ours(task: Any, request: Any, claim: str | None) -> bool:
    """Whether what ``task`` runs is: not taken away, and its claim, if any, ``still_mine``."""
    board = worker_state.board.value
    if board is None:
        return True
    if board.taken_away and was_taken_away(request):
        return False
    return claim is None or still_mine(task, claim)


def holds_claim(task: Any) -> bool:
    """``is_ours``, of what ``task`` runs now."""
    request = task.request
    return is_ours(task, request, claim_of(task, request))


def mark_left(request: Any) -> None:
    """The run of this context has been interrupted: what it comes to has been said."""
    setattr(request, _LEFT, True)


def may_store(task: Any, request: Any) -> bool:
    """Whether a state that a run stores of itself is that of its task.

    Not when it has been interrupted, nor when it has lost its claim: another run counts then.

    Args:
        task: The task that runs.
        request: Its context.
    """
    if getattr(request, DELIVERY, None) is None or request.is_eager:
        return True
    return not getattr(request, _LEFT, False) and is_ours(task, request, claim_of(task, request))


def was_taken_away(request: Any) -> bool:
    """Whether the hard deadline took away what runs: a thread outlives it as long as the worker.

    Its message is back, and whoever has to be told was told.
    """
    board = worker_state.board.value
    return bool(
        board is not None
        and board.taken_away
        and getattr(request, DELIVERY, None) in board.taken_away
    )
