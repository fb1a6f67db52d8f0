"""A message that a worker holds: what is known of it, from its arrival to its answer."""

from __future__ import annotations

import itertools
import time
import uuid
from datetime import datetime, timezone
from typing import Any

from celery.worker.request import Request
from kombu.utils.objects import cached_property

from celery_graceful.batches.marks import BATCH, CALLBACK
from celery_graceful.batches.member_part import Part, part_of
from celery_graceful.batches.model import Outcome
from celery_graceful.checkpoints.checkpoint import DELIVERY
from celery_graceful.claims.fence import CLAIM
from celery_graceful.claims.held_claims import Tag
from celery_graceful.deliveries.stage import LEFT, Stage
from celery_graceful.messages.comebacks import may_resume, replaced_by
from celery_graceful.messages.redelivered_flag import has_begun
from celery_graceful.monitors import outcome
from celery_graceful.monitors.check_in import CheckIn
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.successors import Sent

__all__ = ["HeldMessage"]

_BOOT = uuid.uuid4().hex
_numbers = itertools.count(1)


class HeldMessage(Request):
    """What is known of a message that a worker holds.

    What happens to it is said by the methods; who decides on it is found above.
    """

    #: Its task hands it to the pool by itself.
    by_others = False

    # As of its arrival: what changes it has said so itself.
    stage = Stage.RECEIVED
    started_at: float | None = None
    #: It goes on as another delivery, or another try.
    goes_on = False
    #: Its success was stored, or its retry sent, before its process was lost.
    is_settled = False
    #: It was revoked while it ran, and was told so.
    told_to_end = False
    #: It was revoked while it ran, and its pool was told to end it by force.
    is_killed = False
    #: Others took the worker for dead, and have the message.
    lost = False
    #: What the store was told of its start.
    note: str | None = None
    #: The connection that it came over is gone, and the message back at the broker.
    orphaned = False
    #: It has ended, and is answered as soon as its result is stored.
    tells_later = False
    #: The claim of its message, on Redis.
    claim: Tag | None = None
    #: It is, or may be, part of a batch.
    is_part = False

    _check_in: CheckIn | None
    _message: Any
    _on_ack: Any
    _on_reject: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        fields, message = self.request_dict, self.message
        if BATCH in fields or CALLBACK in fields:
            self.is_part = True
        # Tells the deliveries of a task apart; the copies of the message cannot.
        fields[DELIVERY] = f"{_BOOT}:{next(_numbers)}"
        #: An earlier delivery, or try, may have begun.
        self.came_before = may_resume(fields)
        tag = message.delivery_tag
        if isinstance(tag, Tag):
            self.claim = tag
            fields[CLAIM] = message.properties["delivery_tag"] = str(tag)  # pickled in less time
            tag.book.held[tag] = message
        else:
            fields.pop(CLAIM, None)  # another delivery's, by who handed its headers on
        self.arrived()

    def arrived(self) -> None:
        """For who keeps books: it is known now."""

    def comes_to(self, outcome: Outcome | None) -> None:
        """What it is to its batch if it is answered for good from now on; ``None``: it goes on."""

    def write_end(self) -> None:
        """Nothing more is done for it: its batch is told, if that was not done already."""

    def take_no_room(self) -> None:
        """Another message may be fetched in its place. From any thread."""
        self.message.channel.qos._quick_ack(self.message.delivery_tag)

    # -- what is asked of it -----------------------------------------------------------

    @property
    def part(self) -> Part | None:
        """What it is to a batch."""
        return part_of(self.request_dict) if self.is_part else None

    @property
    def running_for(self) -> float:
        """Seconds since the pool started it."""
        return 0.0 if self.started_at is None else time.monotonic() - self.started_at

    def is_off_hands(self) -> bool:
        """Whether nothing of its message stands at the broker any more, as far as that is known."""
        return self.claim is None or self.claim not in self.claim.book.held

    @property
    def tells_a_run(self) -> bool:
        """Whether it has run, and ended, and is answered as soon as its result is stored."""
        return self.tells_later and self.started_at is not None

    @property
    def has_predecessors(self) -> bool:
        """Whether others of its task may have left something under its id."""
        return bool(self.came_before or replaced_by(self.request_dict))

    @property
    def has_left(self) -> bool:
        """Whether it is not ours any more."""
        return self.stage in LEFT

    @property
    def has_begun(self) -> bool:
        """Whether a run of its message has begun, here or before, and it would expire."""
        begun = self.started_at is not None and bool(self.expires)
        return begun or has_begun(self.message.headers or {})

    @property
    def has_expired(self) -> bool:
        """Whether its queue would drop its message now (RabbitMQ): a copy that has begun stays."""
        if "expiration" not in (self.message.properties or {}):
            return False
        now = datetime.now(timezone.utc if self.expires and self.expires.tzinfo else None)
        return bool(self.expires and now > self.expires)

    def maybe_expire(self) -> Any:
        """``expires`` bounds the first start: a run that was interrupted goes on."""
        return None if has_begun(self.message.headers or {}) else super().maybe_expire()

    @property
    def wants_events(self) -> bool:
        """Whether events are on, for the worker and the task: without, it sends its own alone."""
        eventer = self.eventer
        if not (eventer and eventer.enabled and self.task.send_events):
            return False
        groups = eventer.groups
        return not groups or "task" in groups

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

    @property
    def successor(self) -> Sent | None:
        """What it has sent in its place, as far as that is known."""
        return worker_state.successor_of(self.request_dict[DELIVERY])

    def has_succeeded(self) -> bool:
        """Whether the child stored the result of its task before it died."""
        return False

    def leave_to_successor(self, why: str) -> bool:
        """Whether it goes on as what it has sent in its place: then it has ended, by that.

        Args:
            why: It does not get to say so.
        """
        return False

    def take_check_in(self) -> CheckIn | None:
        """The same, for who closes it."""
        found, self._check_in = self.check_in, None
        return found

    def take_mark(self) -> bool:
        """Whether it may have something in the store; asking takes the note of that away."""
        board = worker_state.board.value
        return board is not None and board.marks.take(self.request_dict[DELIVERY])

    # -- what happens to it ------------------------------------------------------------

    def move(self, stage: Stage) -> None:
        """The ledger moves it, under its lock."""
        self.stage = stage

    def begun_by(self, pid: int, at: float) -> None:
        """A process of the pool has begun with it, among others; ``at``, on the monotonic clock."""
        self.started_at, self.worker_pid = at, pid

    def put_down(self) -> None:
        """Under the lock of the ledger: it was begun, and is held as if it never was."""
        self.stage = Stage.RECEIVED
        if not self.tells_later:
            self.started_at = None

    def tell_later(self) -> None:
        """Under the lock of the ledger: it has ended, and does not begin any more."""
        self.tells_later = True

    def tell_now(self) -> None:
        """What it came to is stored."""
        self.tells_later = False

    def mark_revoked(self) -> None:
        """It runs, and will be told to end."""
        self.told_to_end = True

    def mark_lost(self) -> None:
        """The worker was taken for dead, and others have the message."""
        self.lost = True

    def mark_orphaned(self) -> bool:
        """The connection is gone. False: nothing of it is at the broker, or it will not run."""
        may_start = self.stage is Stage.HANDED_OVER  # by a child that was not heard yet
        if self.acknowledged or (self.started_at is None and not may_start):
            return False
        self.orphaned = True
        return True

    def mark_answered(self) -> None:
        """The broker has its answer, or needs none."""
        self.acknowledged = True

    def take_over(self, copy: HeldMessage) -> None:
        """Its message was delivered again: that delivery is the one to acknowledge."""
        self._message, self._on_ack, self._on_reject = (
            copy._message,
            copy._on_ack,
            copy._on_reject,
        )
        self.orphaned = self.acknowledged = False

    def ack_at_once(self) -> None:
        """Acknowledge without another turn of the loop. In the loop's thread."""
        self._on_ack = self.message.ack_log_error
