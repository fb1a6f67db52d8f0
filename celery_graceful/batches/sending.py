"""Members on their way: registered, and then published, chunk by chunk.

In this order a message is never without its member. What a producer that died had registered,
and not published, is in its last chunk; what one could not publish that lives, it has noted.
Who goes on looks for those in the queues, where they can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.batches.callback_publishing import publish_all
from celery_graceful.batches.eager import EagerLedger
from celery_graceful.batches.ledger import CHUNK, CHUNK_BYTES, BatchLedger
from celery_graceful.batches.marks import first_of, parts_of
from celery_graceful.batches.members import Member, Members
from celery_graceful.batches.model import End
from celery_graceful.batches.publishing import publish
from celery_graceful.batches.sent_in_part import say_changed
from celery_graceful.batches.signatures import NoMember
from celery_graceful.batches.whereabouts import not_found
from celery_graceful.runs.interrupt import shield
from celery_graceful.store.store import StoreAway
from celery_graceful.system.describe import describe

__all__ = ["Sending"]

logger = get_logger(__name__)

#: Seconds that it may take to look whether members were sent that may not have been.
PATIENCE = 2.0


class Sending:
    """Sends members of one batch.

    Args:
        app: The Celery app.
        ledger: That knows of the batch.
        batch: Id of the batch.
        inside: Who adds them after it was sent; see ``BatchLedger.add``.
        sender: Who sends all of it; see ``BatchLedger.begin_sending``.
        again: Some of them may be registered already: a producer died.
        counted: Ids follow from the order; see ``Members``.
        of: What the batch is called, for people; empty: they know which.
        on_sent: Called with the number of members that were sent so far.
    """

    def __init__(
        self,
        app: Any,
        ledger: BatchLedger | EagerLedger,
        batch: str,
        *,
        inside: str | None = None,
        sender: str = "",
        again: bool = False,
        counted: bool = True,
        of: str = "",
        on_sent: Callable[[int], None] = lambda sent: None,
    ) -> None:
        self.app = app
        self.ledger = ledger
        self.batch = batch
        self.inside = inside
        self.sender = sender
        self._again = again
        self._of = of
        self.on_sent = on_sent
        self.sent = 0
        #: The ledger knows of one of them.
        self.has_begun = False
        self._members = Members(app, batch, counted=counted)
        self._chunk: dict[str, Member] = {}
        self._bytes = 0
        #: How many members producers had registered; of those that are given now, how many were
        #: registered, and how many are new, in a place where there was another one, or none.
        self._before = self._known = self._new = 0
        #: Registered before, and perhaps not published.
        self._doubtful: list[Member] = []
        #: Tasks of which it is said that members were not sent.
        self._said: set[str] = set()

    def all(
        self, given: Iterable[Any], nested: type, send_nested: Callable[[Any, str, int], None]
    ) -> None:
        """Send all of them.

        Args:
            given: Signatures, and batches.
            nested: The class of batches.
            send_nested: Sends one that is inside of this one, after ``begin_inside``; gets what it
                was given as, for people, and which of those it is.

        Raises:
            Exception: What ``given``, the store or the broker raised; some may have been sent.
        """
        batches = 0
        if self._again and self._members.counted and isinstance(self.ledger, BatchLedger):
            self._before = self.ledger.count_given(self.batch)
        try:
            for one in given:
                what = f"{self._of}member {self._members.count + batches + 1},"
                if isinstance(one, nested):
                    self._flush()
                    batches += 1
                    send_nested(one, what, batches)
                    self.sent += 1
                else:
                    self._take(self._members.make(one, what))
        except NoMember as exc:
            number = self._members.count + batches + 1
            raise TypeError(f"{self._of}member {number}: {exc}") from exc
        self._flush()
        self._publish_again(self._doubtful)
        if self._new and self._before > self._known:
            say_changed(self.batch, self._before - self._known, self._new)

    def begin_inside(self, again: bool) -> None:
        """A batch inside of it comes next.

        Args:
            again: It was begun before, so all that stands in front of it had been sent.
        """
        self.has_begun = True
        if not again:
            self._publish_again(self._doubtful)
        self._doubtful = []

    def _take(self, member: Member) -> None:
        if member.id in self._chunk:
            raise ValueError(f"two members have the id {member.id}: give each its own")
        self._chunk[member.id] = member
        self._bytes += len(member.packed)
        if len(self._chunk) >= CHUNK or self._bytes >= CHUNK_BYTES:
            self._flush()

    def _flush(self) -> None:
        chunk = list(self._chunk.values())
        if not chunk:
            return
        self._chunk, self._bytes = {}, 0
        # What interrupts a task that sends does not come in between.
        with shield():
            self.has_begun = True
            if self._again:
                self._go_on(chunk)
            else:
                self._register(chunk)
                self._publish(chunk, first=True)
        self.sent += len(chunk)
        self.on_sent(self.sent)

    def _register(self, chunk: Sequence[Member]) -> int:
        """How many of them are new."""
        packed = ((member.id, member.packed) for member in chunk)
        return self.ledger.add(self.batch, packed, inside=self.inside, sender=self.sender)

    def _go_on(self, chunk: Sequence[Member]) -> None:
        ids = [member.id for member in chunk]
        if isinstance(self.ledger, EagerLedger):
            known = self.ledger.known(self.batch, ids, ended=self._members.counted)
            self._register(chunk)
            self._publish([member for member in chunk if member.id not in known])
            return
        known = self.ledger.registered(self.batch, ids)
        self._known += len(known)
        self._new += sum(one.by_place and one.id not in known for one in chunk)
        if len(known) < len(chunk):  # before more is registered: then these were not the last
            self._publish_again(self._doubtful)
            self._doubtful = []
        if self._register(chunk) == len(chunk):
            self._publish(chunk, first=True)
        elif len(known) < len(chunk):
            self._publish_again(chunk)
        else:
            unsent = self.ledger.unsent(self.batch, ids)
            self._publish_again([member for member in chunk if member.id in unsent])
            others = [member for member in chunk if member.id not in unsent]
            self._doubtful = _last_chunk([*self._doubtful, *others])

    def _still_pending(self, members: Sequence[Member]) -> list[Member]:
        if not members:
            return []
        ids = [member.id for member in members]
        kept = self.ledger.messages(self.batch, ids)
        failed = self.ledger.outcomes(self.batch, ids)
        return [one for one in members if one.id in kept and one.id not in failed]

    def _publish_again(self, doubtful: Sequence[Member]) -> None:
        if self._members.counted:  # what a task adds may come in many calls
            # One that begins with several tasks may be there in part.
            seen = [one.id for one in doubtful if parts_of(first_of(one.signature)) is None]
            found = {*seen} - not_found(self.app, self.batch, seen, PATIENCE)
            doubtful = [one for one in doubtful if one.id not in found]
        members = self._still_pending(doubtful)
        self._publish(members)
        if members and isinstance(self.ledger, BatchLedger):
            self.ledger.note_unsent(self.batch, [one.id for one in members], False)

    def _publish(self, members: Sequence[Member], *, first: bool = False) -> None:
        if isinstance(self.ledger, EagerLedger):
            self.ledger.run(self.batch, members)
        elif members:
            try:
                not_sent = publish(self.app, [member.signature for member in members])
            except Exception:
                self._note_unsent(self.ledger, [member.id for member in members])
                raise
            # Sent again, it may be its own message, lost or not, that it is a duplicate of.
            if not_sent and first:
                self._say_not_sent([one for one in members if one.id in not_sent])
                ends = [End(self.batch, *end) for end in not_sent.items()]
                publish_all(self.app, self.ledger.end(ends))

    def _say_not_sent(self, members: Sequence[Member]) -> None:
        names = {member.signature.task for member in members} - self._said
        self._said |= names
        for name in sorted(names):
            logger.info(
                "Batch %s: %s has an apply_async of its own that sent nothing for a member, such "
                "as a duplicate: those have ended",
                self.batch,
                name,
            )

    def _note_unsent(self, ledger: BatchLedger, members: Sequence[str]) -> None:
        try:
            ledger.note_unsent(self.batch, members)
        except StoreAway as exc:
            logger.error(
                "Batch %s: %d members may not be sent: %s. See celery graceful batches resend",
                self.batch,
                len(members),
                describe(exc),
            )


def _last_chunk(members: list[Member]) -> list[Member]:
    """Those that may have been one chunk, with others between them that made another end there.

    It was filled from the front: without its last member it was not full.
    """
    size = 0
    for count, member in enumerate(reversed(members)):
        size += len(member.packed) if count else 0
        if count >= CHUNK or size >= CHUNK_BYTES:
            return members[len(members) - count :]
    return members
