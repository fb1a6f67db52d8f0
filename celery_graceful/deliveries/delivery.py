"""A delivery: how a message that the worker holds is started, and answered to the broker."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery import states
from celery.worker.request import Request

from celery_graceful.batches.model import Outcome
from celery_graceful.checkpoints.checkpoint import DELIVERY
from celery_graceful.deliveries.handler_errors import say
from celery_graceful.deliveries.member_end import MemberEnd
from celery_graceful.deliveries.stage import LEFT, UNBEGUN, Stage
from celery_graceful.messages.comebacks import came_back
from celery_graceful.monitors import outcome
from celery_graceful.monitors.registry import Monitors

__all__ = ["Delivery"]

#: Events whose states a state unknown to Celery outranks; see ``celery.states.precedence``.
_OUTRANKED = {
    "task-started": states.STARTED,
    "task-revoked": states.REVOKED,
    "task-rejected": states.REJECTED,
}


class Delivery(MemberEnd):
    """A message in the main process, from its arrival to its acknowledgement."""

    #: Of the task's app; as ``host``.
    monitors: Monitors
    #: The class that these requests would be of otherwise.
    plain: type[Request]

    def arrived(self) -> None:
        """The worker holds it."""
        self.ledger.enter(self)
        if self.is_part and (self.task.rate_limit or self.eta is not None):
            part = self.part
            if part is not None:
                self.host.on_waiting(part)

    def send_event(self, type: str, **fields: Any) -> None:
        """As ever, and what others have to show from now on.

        To them ``INTERRUPTED`` is a state that they do not know, and Celery lets such a one stand
        until the task succeeds or fails.
        """
        if not self.wants_events and self.plain is Request:
            return
        if self.came_before and type in _OUTRANKED:
            fields["state"] = _OUTRANKED[type]
            if type == "task-started" and came_back(self.request_dict):
                super().send_event("task-resumed")  # before, or it would be the state
        super().send_event(type, **fields)

    # -- its start -------------------------------------------------------------------

    def begin(self, at: float | None = None) -> bool:
        """The pool starts it. False: it was given back meanwhile, leave it.

        Args:
            at: When it was started, on the monotonic clock: a child of a pool may be heard late,
                after a lost connection for one.
        """
        with self.ledger.lock:
            if self.stage not in UNBEGUN or self.tells_later:
                return False
            self.stage = Stage.RUNNING
        self.started_at = time.monotonic() if at is None else at
        if self.expires and self.claim is not None:
            self.claim.book.begun.add(str(self.claim))
        if self.monitors.may_have(self.task, self.request_dict) and self.check_in is not None:
            self.host.on_check_in()
        self.note = self.ledger.post_mortems.begins(self)
        return True

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """It has started, whatever is raised by those who are told."""
        if self.stage is not Stage.RUNNING and not self.begin(time_accepted):
            return
        if self.claim is not None and not self.task.acks_late:
            self.claim.is_early = True
        try:
            super().on_accepted(pid, time_accepted)
        except BaseException as exc:
            if not self.task.acks_late:
                self.acknowledge()
            say(self, "runs, although this was raised at its start", exc)

    # -- the answer to the broker ------------------------------------------------------

    def acknowledge(self) -> None:
        """Its message is done with; unless it went back, or is somebody else's."""
        never_handed_over = self.stage is Stage.RECEIVED  # by others, as an end
        if never_handed_over and self.by_others:
            self.comes_to(Outcome.SUCCEEDED)
        if not self.is_part or self.stage in LEFT or not self._end_first(self._acknowledge):
            self._acknowledge()
        if never_handed_over:
            self.ledger.finish(self)

    def _acknowledge(self) -> None:
        if self.orphaned and self.host.duplicates.owe(self):
            self.acknowledged = True
        elif self.stage in LEFT:
            return
        elif self.claim is not None and not self.host.is_connected():
            # Celery's way leads through the loop, which is busy connecting again.
            if not self.acknowledged:
                self.claim.book.ack(self.claim)
                self.acknowledged = True
        else:
            self._note_end()
            super().acknowledge()

    def _note_end(self) -> None:
        """It need not come back, whatever becomes of Celery's way to say so: through the loop."""
        if self.acknowledged:
            return
        if self.claim is not None:
            self.claim.book.ended.add(self.claim)
        elif self.ledger.requeue.is_amqp:
            self.host.duplicates.answered(self)

    def reject(self, requeue: bool = False) -> None:
        """Its message goes back, or is done with without a success."""
        if self.has_left:
            return
        if self.orphaned and (requeue or self.host.duplicates.owe(self)):
            self.acknowledged = True
            return
        requeue = requeue and not self.acknowledged  # what was, at its start, does not come back
        self.goes_on = self.goes_on or requeue
        means_nothing = self.stage is Stage.RECEIVED  # an ETA, for one
        if means_nothing and not requeue:
            self.comes_to(Outcome.FAILED)
        if requeue or not self.is_part or not self._end_first(self._reject):
            self._reject(requeue)
        if means_nothing:
            self.ledger.finish(self)
            if not self.goes_on:
                outcome.close(self, "error", "rejected")

    def _reject(self, requeue: bool = False) -> None:
        if not requeue:
            self._note_end()
        elif self.claim is not None:  # a lost connection may come first: then it goes back by that
            self.claim.book.let_go_of(self.claim)
        super().reject(requeue=requeue)

    def discard_saved(self, is_acknowledged: Callable[[], bool] = lambda: True) -> None:
        """It has ended for good: its checkpoint is of no use any more.

        Args:
            is_acknowledged: Whether its message is done with.
        """
        began = (self.started_at or time.monotonic()) if self.has_predecessors else None
        token = self.request_dict[DELIVERY]
        self.host.discard(self.task.name, self.id, token, began, is_acknowledged)

    def cancel(self, pool: Any, signal: Any = None, **options: Any) -> None:
        """Celery does so where a message cannot be acknowledged any more; a claim always can."""
        if self.claim is None or self.acknowledged:
            super().cancel(pool, signal, **options)
