"""A delivery: one message in the main process, from its arrival to its acknowledgement."""

from __future__ import annotations

import itertools
import time
import uuid
from datetime import datetime, timezone
from typing import Any

from celery import states
from celery.worker import state
from celery.worker.request import Request
from kombu.utils.objects import cached_property

from celery_graceful.aftermath import let_go, say
from celery_graceful.checkpoint import DELIVERY, may_resume
from celery_graceful.claims import Tag
from celery_graceful.fence import CLAIM
from celery_graceful.ledger import Ledger
from celery_graceful.monitors import outcome
from celery_graceful.monitors.checkin import CheckIn
from celery_graceful.redelivery import has_begun
from celery_graceful.stage import OPEN, Stage

__all__ = ["Delivery"]

#: Events whose states a state unknown to Celery outranks; see ``celery.states.precedence``.
_OUTRANKED = {
    "task-started": states.STARTED,
    "task-revoked": states.REVOKED,
    "task-rejected": states.REJECTED,
}

_BOOT = uuid.uuid4().hex
_numbers = itertools.count(1)


class Delivery(Request):
    """What a worker knows of a message that it holds, and how it starts and answers it."""

    #: The ledger of this worker; set by ``adopt``.
    ledger: Ledger
    #: Its task hands it to the pool by itself; set by ``adopt``.
    by_others = False

    _check_in: CheckIn | None
    _message: Any
    _on_ack: Any
    _on_reject: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stage = Stage.RECEIVED
        self.started_at: float | None = None
        #: It goes on as another delivery, or another try.
        self.goes_on = False
        #: Its success was stored, or its retry sent, before its process was lost.
        self.is_settled = False
        #: It was revoked while it ran, and was told so.
        self.told_to_end = False
        #: Others took the worker for dead, and have the message.
        self.lost = False
        #: What the store was told of its start.
        self.note: str | None = None
        #: The connection that it came over is gone, and the message back at the broker.
        self.orphaned = False
        # Tells the deliveries of a task apart; the copies of the message cannot.
        self.request_dict[DELIVERY] = f"{_BOOT}:{next(_numbers)}"
        tag = self.message.delivery_tag
        #: The claim of its message, on Redis.
        self.claim = tag if isinstance(tag, Tag) else None
        if self.claim is not None:
            self.request_dict[CLAIM] = str(tag)
            self.claim.book.held[self.claim] = self.message
        self.ledger.held[id(self)] = self
        if self.by_others:
            self.ledger.handovers.deliveries.add(self)
        if self.ledger.releasing:  # Celery may keep it, for its ETA or its rate limit
            self.ledger.on_change()

    @property
    def running_for(self) -> float:
        """Seconds since the pool started it."""
        return 0.0 if self.started_at is None else time.monotonic() - self.started_at

    @property
    def wants_events(self) -> bool:
        """Whether events are on, for the worker and the task."""
        return bool(self.eventer and self.eventer.enabled and self.task.send_events)

    def send_event(self, type: str, **fields: Any) -> None:
        """As ever, and what others have to show from now on.

        To them ``INTERRUPTED`` is a state that they do not know, and Celery lets such a one stand
        until the task succeeds or fails.
        """
        if type in _OUTRANKED and self.wants_events and may_resume(self.context):
            fields["state"] = _OUTRANKED[type]
        super().send_event(type, **fields)

    @cached_property
    def context(self) -> Any:
        """The task's context, as signals and backends want it."""
        return self._context

    @property
    def check_in(self) -> CheckIn | None:
        """Of its run, until somebody closes it. Nobody opens one for what others hand over."""
        if self.by_others:
            return None
        if "_check_in" not in self.__dict__:
            self._check_in = outcome.find_check_in(self)
        return self._check_in

    def take_check_in(self) -> CheckIn | None:
        """The same, for who closes it."""
        found, self._check_in = self.check_in, None
        return found

    # -- its start -------------------------------------------------------------------

    def begin(self) -> bool:
        """The pool is about to start it. False: it was given back meanwhile, leave it."""
        with self.ledger.lock:
            if self.stage not in (Stage.RECEIVED, Stage.HANDED_OVER):
                return False
            self.stage = Stage.RUNNING
        self.started_at = time.monotonic()
        if self.expires and self.claim is not None:
            self.claim.book.begun.add(str(self.claim))
        if self.check_in is not None:
            self.ledger.on_check_in()
        self.note = self.ledger.inquest.begins(self)
        return True

    @property
    def has_begun(self) -> bool:
        """Whether a run of its message has begun, here or before, and it would expire."""
        begun = self.started_at is not None and bool(self.expires)
        return begun or has_begun(self.message.headers or {})

    @property
    def has_expired(self) -> bool:
        """Whether its queue would drop its message now (RabbitMQ)."""
        now = datetime.now(timezone.utc if self.expires and self.expires.tzinfo else None)
        return bool(self.expires and now > self.expires)

    def maybe_expire(self) -> Any:
        """``expires`` bounds the first start: a run that was interrupted goes on."""
        return None if has_begun(self.message.headers or {}) else super().maybe_expire()

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """It has started, whatever is raised by those who are told."""
        if self.stage is not Stage.RUNNING and not self.begin():
            return
        try:
            super().on_accepted(pid, time_accepted)
        except BaseException as exc:
            if not self.task.acks_late:
                self.acknowledge()
            say(self, "runs, although this was raised at its start", exc)

    # -- its end ---------------------------------------------------------------------

    @property
    def has_left(self) -> bool:
        """Whether it is not ours any more."""
        return self.stage in (Stage.RELEASED, Stage.GIVEN_UP, Stage.LOST)

    def finish(self) -> bool:
        """It has ended by itself. False: it was given back before, ignore its end."""
        if self.lost:
            self.drop_lost()
            return False
        return self.ledger.close(self, Stage.FINISHED, only=OPEN)

    def has_ended(self) -> bool:
        """As ``finish``; a hard time limit is told twice, as time-out and as failure."""
        return self.finish() or self.stage is Stage.FINISHED

    def give_up(self, *, heard: bool) -> bool:
        """The hard deadline takes it away. False: it has ended.

        Args:
            heard: The loop goes round, so that what has begun was heard to have begun.
        """
        unbegun = (Stage.RECEIVED, Stage.HANDED_OVER) if heard else (Stage.RECEIVED,)
        return self.ledger.close(self, Stage.RELEASED, only=unbegun) or self.ledger.close(
            self, Stage.GIVEN_UP, only=OPEN
        )

    def drop(self) -> None:
        """It has ended elsewhere: in quarantine, or as another delivery."""
        if self.finish():
            let_go(self)
            self.acknowledge()

    def drop_lost(self) -> None:
        """It has ended, and another run of it is what counts: say nothing of it."""
        if self.ledger.close(self, Stage.LOST, only=OPEN):
            if self.claim is not None:
                self.claim.book.held.pop(self.claim, None)
            let_go(self)

    # -- the answer to the broker ------------------------------------------------------

    def acknowledge(self) -> None:
        """Its message is done with; unless it went back, or is somebody else's."""
        if self.orphaned and self.ledger.copies.owe(self):
            self.acknowledged = True
        elif self.has_left:
            return
        elif self.claim is not None and not self.ledger.connected():
            # Celery's way leads through the loop, which is busy connecting again.
            if not self.acknowledged:
                self.claim.book.ack(self.claim)
                self.acknowledged = True
        else:
            self._note_end()
            super().acknowledge()
        if self.stage is Stage.RECEIVED:  # others have, who never hand it over
            self.finish()

    def _note_end(self) -> None:
        """It need not come back, whatever becomes of Celery's way to say so: through the loop."""
        if self.acknowledged:
            return
        if self.claim is not None:
            self.claim.book.ended.add(self.claim)
        elif self.ledger.requeue.is_amqp:
            self.ledger.copies.answered(self)

    def reject(self, requeue: bool = False) -> None:
        """Its message goes back, or is done with without a success."""
        if self.has_left:
            return
        if self.orphaned and (requeue or self.ledger.copies.owe(self)):
            self.acknowledged = True
            return
        self.goes_on = self.goes_on or requeue
        if not requeue:
            self._note_end()
        elif self.claim is not None:  # a lost connection may come first: then it goes back by that
            self.claim.book.let_go_of(self.claim)
        super().reject(requeue=requeue)
        if self.stage is Stage.RECEIVED:  # an ETA that means nothing
            self.finish()
            if not self.goes_on:
                outcome.close(self, "error", "rejected")

    def ack_at_once(self) -> None:
        """Acknowledge without another turn of the loop. In the loop's thread."""
        self._on_ack = self.message.ack_log_error

    def cancel(self, pool: Any, signal: Any = None, **options: Any) -> None:
        """Celery does so where a message cannot be acknowledged any more; a claim always can."""
        if self.claim is None or self.acknowledged:
            super().cancel(pool, signal, **options)

    # -- its copies ------------------------------------------------------------------

    def take_over(self, copy: Delivery) -> None:
        """Its message was delivered again: that delivery is the one to acknowledge."""
        self._message, self._on_ack, self._on_reject = (
            copy._message,
            copy._on_ack,
            copy._on_reject,
        )
        self.orphaned = False

    def leave_to(self, run: Delivery) -> None:
        """As a copy of ``run``, which has taken it over."""
        if self.ledger.close(self, Stage.RELEASED, only=OPEN):
            let_go(self)
            state.requests[run.id] = run
