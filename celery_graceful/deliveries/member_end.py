"""What the end of a delivery is to the batch that it is part of, and when that is written down.

Who hears of an end says what it comes to, before Celery answers the message: then the two go
together (``batches/ends.py``). What was answered at its start, or never is, is written down when
all else is done. Whatever goes on elsewhere, as a retry, a replacement or a message that comes
again, comes to nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from billiard.exceptions import Terminated
from celery.exceptions import Ignore, Reject, Retry

from celery_graceful.batches.member_part import Told, end_of_success
from celery_graceful.batches.model import Outcome, State
from celery_graceful.batches.skipped_or_replaced import LeftOut, Replaced
from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.worker_services import WorkerServices
from celery_graceful.exceptions import BatchFinished

__all__ = ["MemberEnd", "outcome_of"]


def outcome_of(exc: BaseException, *, acknowledged: bool) -> Outcome | None:
    """What a task comes to that was left by ``exc``; ``None`` if it goes on.

    Args:
        exc: What it was.
        acknowledged: At its start: then it does not come back, whatever it asks for.
    """
    comes_back = isinstance(exc, Reject) and exc.requeue and not acknowledged
    if isinstance(exc, (Retry, Replaced, LeftOut)) or comes_back:
        return None
    if isinstance(exc, BatchFinished) and exc.state == State.SENDING:
        return None  # another run of it goes on
    if isinstance(exc, Reject):
        return Outcome.FAILED
    if isinstance(exc, Ignore):
        return Outcome.SUCCEEDED
    return Outcome.REVOKED if isinstance(exc, Terminated) else Outcome.FAILED


class MemberEnd(HeldMessage):
    """A delivery that may be part of a batch."""

    #: The worker; set on the class of each task, by ``adopt``.
    host: WorkerServices
    #: What the worker holds; as ``host``.
    ledger: Ledger

    #: What its batch is told, if it is answered for good from now on.
    _end: Told | None = None
    _is_written = False

    def comes_to(self, outcome: Outcome | None) -> None:
        part = self.part
        self._end = None if part is None or outcome is None else part.end(outcome)

    def has_succeeded_whole(self) -> None:
        """It has succeeded: is all that it is one of done by that?"""
        self._end = end_of_success(self.request_dict, self.id)

    def write_end(self) -> None:
        end = self._take_end()
        if end is not None:
            self.host.ends.note(end, self._ledger_at)

    def _end_first(self, answer: Callable[[], None]) -> bool:
        """It is about to be answered for good; whether ``answer`` has to wait, and follows."""
        end = self._take_end()
        if end is None:
            return False
        claim, ends = self.claim, self.host.ends
        if self.acknowledged or self.orphaned:
            ends.note(end, self._ledger_at)
            return False
        if claim is not None and ends.with_claims:
            claim.book.end_with(claim, end)
            return False
        self._end_before(answer, end)
        return True

    def _end_before(self, answer: Callable[[], None], end: Told) -> None:
        is_amqp = self.claim is None and self.ledger.requeue.is_amqp

        def follow() -> None:
            if is_amqp and not self.message.channel.is_open:
                return  # it is back at the broker, and known to have ended
            self.acknowledged = False
            answer()

        if is_amqp:
            self.host.duplicates.answered(self)
        self.acknowledged = True
        self.host.ends.note(end, then=follow)

    def _take_end(self) -> Told | None:
        """Its end, for who writes it down; nobody else will."""
        if self._end is None or self._is_written or self.goes_on:
            return None
        self._is_written = True
        return self._end

    @property
    def _ledger_at(self) -> Any:
        """The store of its batch, where it is its broker."""
        claim = self.claim
        return claim.book.store if claim is not None and self.host.ends.with_claims else None
