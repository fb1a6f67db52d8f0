"""The remedies for a batch that does not end, for people: what ``celery graceful batches`` does.

``resend`` what is missing, or what is named; run a ``callback`` now; ``complete`` it by force;
``drop`` it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Any

from celery_graceful.batches.brief_status import standing_of, still_open
from celery_graceful.batches.failed_members import FailedMembers
from celery_graceful.batches.findings import Missing, Named, note, noted
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.looks import between_looks
from celery_graceful.batches.missing import Scan
from celery_graceful.batches.model import Due
from celery_graceful.batches.packing import load
from celery_graceful.batches.repair import Publish, Repair, Repaired
from celery_graceful.batches.routes import Routes
from celery_graceful.batches.search_state import Doubt, Sought, Unknown, callback_member
from celery_graceful.batches.sent_again import lately
from celery_graceful.batches.status import Status
from celery_graceful.batches.whereabouts import whereabouts_of
from celery_graceful.exceptions import UnknownBatch
from celery_graceful.store.app_stores import settings_of

__all__ = ["CallbackRuns", "HeaderRuns", "Remedies"]

#: Seconds for which what was found is known.
KNOWN = 600.0


class HeaderRuns(Exception):
    """The body of a chord is not sent by hand: its header has not ended.

    Args:
        batch: Id of the chord.
    """

    def __init__(self, batch: str) -> None:
        super().__init__(batch)
        self.batch = batch

    def __str__(self) -> str:
        return (
            f"the header of chord {self.batch} has not ended, so there is nothing to give its "
            "body: send what is missing again (batches resend), or end it (batches complete)"
        )


class CallbackRuns(Exception):
    """A callback is not sent by hand: it has begun, and goes on.

    Args:
        batch: Id of the batch.
        name: Of the callback.
        doubt: Why it may be lost all the same.
    """

    def __init__(self, batch: str, name: str, doubt: str = "") -> None:
        super().__init__(batch, name, doubt)
        self.batch, self.name, self.doubt = batch, name, doubt

    def __str__(self) -> str:
        begun = f"{self.name} of batch {self.batch} has begun, and"
        if self.doubt:
            return (
                f"{begun} whether it is lost cannot be known: {self.doubt}. Sent now it may run "
                "twice; --force does so"
            )
        return (
            f"{begun} is not lost: a worker runs it, or it is in a queue and comes again. Sent "
            "now it would run twice; --force does so"
        )


class Remedies:
    """What people can do about the batches of an app. All of it raises ``StoreAway``, too.

    Args:
        app: The Celery app.
        ledger: Where its batches are known.
        publish: Sends callbacks that have become due.
    """

    def __init__(self, app: Any, ledger: BatchLedger, publish: Publish) -> None:
        self.app, self.ledger, self.publish = app, ledger, publish
        self._repair = Repair(app, ledger, publish)
        self._where = whereabouts_of(app, time.sleep, Routes(app, ledger).of)
        settings = settings_of(app)
        pause = between_looks(settings)
        self._scan = Scan(ledger, self._where, _wait, pause, self._doubt)
        #: Batch -> what the last ``look`` could not tell of it.
        self.unknown: dict[str, Unknown] = {}
        self._failed = FailedMembers(ledger, self._where, _wait, pause, lately(settings))

    def unfinished(self) -> Iterator[Status]:
        """All batches that have not ended, that which has stood still for longest first."""
        return self.ledger.statuses(self.ledger.stood_still(0))

    def look(self, batch: str) -> dict[str, list[Missing]]:
        """What is missing of a batch, and of those inside of it, as it is now: that takes seconds.

        Raises:
            UnknownBatch: There is no such batch.
            Exception: What the broker's client raised.
        """
        self.unknown = {}
        found = self._scan.look([*dict.fromkeys(self.ledger.with_kids(batch))])
        if batch not in found:
            raise UnknownBatch(batch)
        for one, missing in found.items():
            note(self.ledger, one, missing, KNOWN)
        return found

    def _doubt(self, batch: str, members: Collection[str], doubt: Doubt) -> None:
        count = len(still_open(self.ledger, batch, sorted(members)))
        if count:
            self.unknown[batch] = Unknown(count, doubt)

    def look_failed(self, batch: str) -> dict[str, list[Missing]]:
        """Members that have failed, of a batch and those inside of it; unsure are those that go on.

        One that was sent again has failed until it succeeds; so has one that was in a queue when
        its batch was completed by force. Raises as ``look``.
        """
        return self._failed.look([*dict.fromkeys(self._with_failed(batch))])

    def _with_failed(self, batch: str) -> Iterator[str]:
        yield batch
        for member in {*self.ledger.members_failed(batch)}:
            if self._is_batch(member):
                yield from self._with_failed(member)

    def _is_batch(self, member: str) -> bool:
        return self.ledger.state(member) is not None

    def failed(self, batch: str, most: int) -> list[str]:
        """Members that have failed, in no order.

        Args:
            batch: The batch.
            most: How many members, at most.
        """
        return [*dict.fromkeys(islice(self.ledger.members_failed(batch), most))]

    def tasks_of(self, batch: str, members: Sequence[str]) -> dict[str, str | None]:
        """The names of their tasks, as far as what was sent is kept, and can be read here."""
        kept = self.ledger.messages(batch, members)
        return {member: self._task_of(kept.get(member)) for member in members}

    def _task_of(self, packed: bytes | None) -> str | None:
        try:
            return None if packed is None else str(load(self.app, packed).task)
        except Exception:  # of another app, say, which takes what this one does not
            return None

    def resend(
        self,
        batch: str,
        members: Sequence[str] = (),
        *,
        failed: bool = False,
        unsure: bool = False,
        close: bool = False,
        found: Sequence[Missing] | None = None,
    ) -> Repaired:
        """Send missing members again, under their old ids; or end them as their results say.

        Args:
            batch: The batch.
            members: Those, wherever they are. Without: what is missing, as it is now.
            failed: Those that have failed, in the place of what is missing; not batches inside.
            unsure: Also those that may be somewhere all the same, or are.
            close: Its producer is dead: it is complete with the members that it has.
            found: What is missing, or has failed, where that was looked for just now.

        Raises:
            UnknownBatch: There is no such batch.
            Exception: What the broker's client raised.
        """
        now = standing_of(self.ledger, batch)
        if now is None:
            raise UnknownBatch(batch)
        missing: Sequence[Missing] = [Named(member) for member in members]
        if failed:
            there = self._failed.look([batch])[batch] if found is None else found
            missing = [*missing, *(one for one in there if one.member not in members)]
        elif not members:
            missing = self.look(batch)[batch] if found is None else found
        chosen = [one for one in missing if one.sure or unsure]
        seen = self._failed.looked_at if failed else None
        done = self._repair.mend(batch, now, chosen, lambda task: True, seen=seen)
        done.left.update((one.member, one.why) for one in missing if not (one.sure or unsure))
        dealt_with = done.dealt_with()
        rest = [one for one in noted(self.ledger, batch) if one.member not in dealt_with]
        note(self.ledger, batch, rest, KNOWN)
        if close:
            self.publish(self.ledger.sent(batch))
        return done

    def callback(self, batch: str, name: str, *, force: bool = False) -> bool:
        """Run a callback now, whatever the batch waits for.

        Args:
            batch: The batch.
            name: Of the callback.
            force: Also while it runs: then it runs twice.

        Returns:
            Not if it has ended, or has begun since it was looked for, or somebody else sends it.

        Raises:
            UnknownBatch: There is no such batch, or it has no such callback.
            CallbackRuns: It has begun, and a worker that lives has it, or a queue, as far as
                anybody can know: it comes again.
            HeaderRuns: It is the body of a chord, whose results are still to come.
            Exception: What the broker's client raised.
        """
        due = Due(batch, name)
        if self.ledger.callback(due).gathers and self.ledger.status(batch).pending:
            raise HeaderRuns(batch)
        seen = "" if force else self.ledger.copy_of(due)
        if not force and self.ledger.has_begun(due):
            self._check_lost(due)
        fired = self.ledger.fire(batch, name, seen)
        self.publish(fired)
        return bool(fired)

    def _check_lost(self, due: Due) -> None:
        """That what has begun is nowhere. Workers say what they hold with each heartbeat."""
        doubts = []
        for pause in (self._scan.pause, 0.0):
            sought = Sought({due.batch: [callback_member(due.name)]})
            self._where.look(sought, again=True)
            if not sought:
                raise CallbackRuns(due.batch, due.name)
            doubts += [doubt.why for doubt in sought.doubts.values()]
            _wait(pause)
        if doubts:
            raise CallbackRuns(due.batch, due.name, doubts[-1])

    def complete(self, batch: str) -> None:
        """End a batch by force: who has not ended has failed.

        Raises:
            UnknownBatch: There is no such batch.
        """
        self.publish(self.ledger.complete(batch))

    def drop(self, batch: str) -> None:
        """Forget a batch; to the one that it is inside of it was revoked.

        Raises:
            UnknownBatch: There is no such batch.
        """
        self.publish(self.ledger.drop(batch))


def _wait(seconds: float) -> bool:
    time.sleep(seconds)
    return True
