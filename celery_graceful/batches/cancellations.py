"""Which batches are not cancelled: what this process has heard of that a moment ago.

Answers come with what the ledger is asked anyway, the ends of members; where there are none, who
begins a member asks. All answers are void when the worker is told that a batch was cancelled: it
says so on the board, which all of its processes see. So how old an answer may be matters only
where that was not heard.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.model import State
from celery_graceful.store.store import Store
from celery_graceful.system.per_app import PerApp
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import CANCELLATIONS

__all__ = ["Known", "Moment", "is_cancelled", "known_of", "tell_workers"]

#: Batches that are remembered; and of which workers are told at once.
MOST, TOLD = 1000, 500


class Moment(NamedTuple):
    """When somebody asks.

    Attributes:
        at: On the monotonic clock.
        told: How many cancellations the worker was told of, as its board counts them.
    """

    at: float
    told: int

    @classmethod
    def now(cls) -> Moment:
        """Before asking."""
        return cls(time.monotonic(), worker_state.flag.value[CANCELLATIONS])


class Known:
    """What is known of the batches of one app."""

    def __init__(self) -> None:
        #: When somebody asked who then heard that each was not cancelled.
        self.asked: dict[str, Moment] = {}

    def age(self, batch: str) -> float:
        """Seconds since the question that was answered: it is not cancelled; else infinite."""
        asked = self.asked.get(batch)
        if asked is None or worker_state.flag.value[CANCELLATIONS] != asked.told:
            return math.inf
        return time.monotonic() - asked.at

    def not_cancelled(self, batches: Iterable[str], asked: Moment) -> None:
        """So it was answered to a question that was put then."""
        if len(self.asked) >= MOST:
            self.asked.clear()
        self.asked.update(dict.fromkeys(batches, asked))


_known: PerApp[Known] = PerApp()


def known_of(app: Any) -> Known:
    """What this process knows of the batches of ``app``."""
    return _known.get(app) or _known.setdefault(app, Known())


def is_cancelled(app: Any, store: Store, batch: str, *, insist: bool = True) -> bool:
    """Ask the ledger; that it is not is known from then on.

    Args:
        app: The Celery app.
        store: Where the ledger is.
        batch: Id of the batch.
        insist: Ask also when the store was away a moment ago.

    Raises:
        StoreAway: It did not answer.
    """
    asked = Moment.now()
    if BatchLedger(store).state(batch, insist=insist) is State.CANCELLED:
        return True
    known_of(app).not_cancelled((batch,), asked)
    return False


def tell_workers(app: Any, batches: Iterable[str], connection: Any = None) -> None:
    """Have all workers end what they hold of batches that were cancelled; twice is as once.

    Args:
        app: The Celery app.
        batches: Their ids.
        connection: Of kombu's, to the broker; without, the app's own.

    Raises:
        kombu.exceptions.OperationalError: They could not be told.
    """
    told = iter(batches)
    while some := list(islice(told, TOLD)):
        app.control.broadcast("cancel_batches", arguments={"batches": some}, connection=connection)
