"""What operations return of batches: frozen records, as those of ``records``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery_graceful.batches.search_state import callback_name
from celery_graceful.batches.status import Status
from celery_graceful.operations.records import Record, Why

__all__ = ["FailedMember", "MissingMember", "Resent", "Standing", "Unknown"]


@dataclass(frozen=True)
class FailedMember(Record):
    """A member that has failed for good.

    Attributes:
        member: Its id.
        task: The name of its task; ``None`` of a batch, and where what was sent is not kept, or
            cannot be read here.
        batch: It is a batch itself.
        description: Of that batch.
    """

    member: str
    task: str | None
    batch: bool = False
    description: str = ""


@dataclass(frozen=True)
class MissingMember(Record):
    """A member, or callback, that was found nowhere.

    Attributes:
        member: Its id; ``callback:<name>`` of a callback.
        why: What is known of it, for people.
        sure: It is in no queue and no worker holds it; else it may be somewhere all the same.
        task: The name of its task, as of a failed member; ``None`` of a callback.
    """

    member: str
    why: str
    sure: bool
    task: str | None

    @property
    def is_callback(self) -> bool:
        """Whether it is a callback of the batch."""
        return callback_name(self.member) is not None


@dataclass(frozen=True)
class Unknown(Record):
    """Members, and callbacks, of which nobody can say whether they are missing.

    Attributes:
        count: How many: they have not ended, and were found nowhere where one can look.
        why: What keeps it from being known.
        mend: When it can be known; empty if nobody can tell.
        age: Seconds; once the batch has stood still for so long, they are listed as missing, and
            unsure.
    """

    count: int
    why: str
    mend: str
    age: float

    @property
    def said(self) -> str:
        """How many, for people."""
        return f"whether {self.count:,} {'is' if self.count == 1 else 'are'} missing"


@dataclass(frozen=True)
class Standing(Record):
    """How a batch stands.

    Attributes:
        status: As ``Batch.status`` says it.
        missing: Its missing members, as of the last look for them.
        others: Where some of the other pending ones are, where they were looked for; else batches
            inside of it that miss something.
        failed: Members that have failed: twenty of them at most, in no order.
        left: Nobody sends the rest of it: its producer has died, or failed.
        unknown: What may be missing or not, also of batches inside; where it was looked for.
    """

    status: Status
    missing: tuple[MissingMember, ...]
    others: tuple[Why, ...] = ()
    failed: tuple[FailedMember, ...] = ()
    left: bool = False
    unknown: Unknown | None = None

    def to_dict(self) -> dict[str, Any]:
        """The names of the status, and ``missing_``, ``other_`` and ``failed_members``."""
        return {
            **self.status.summary(),
            "left": self.left,
            "unknown": self.unknown and self.unknown.to_dict(),
            "missing_members": [one.to_dict() for one in self.missing],
            "other_members": [one.to_dict() for one in self.others],
            "failed_members": [one.to_dict() for one in self.failed],
        }


@dataclass(frozen=True)
class Resent(Record):
    """What was done about the missing members of a batch.

    Attributes:
        id: Of the batch.
        ended: Members that had ended unseen, by their results or in quarantine.
        resent: Members that were sent again.
        failed: Members that were given up, and bodies of chords, the results for which have gone.
        called: Callbacks that were sent again.
        left: Of the others, why nothing was done.
        sending: It has not got all of its members yet: its producer is at it, or dead.
        closed: Its producer was given up: it is complete with the members that it has.
        said: All that in a sentence; or why nothing was tried.
        ok: It was tried.
        inside: Of batches inside of it, in which something was found.
        unknown: What may be missing or not: nothing was done about that.
    """

    id: str
    ended: tuple[str, ...]
    resent: tuple[str, ...]
    failed: tuple[str, ...]
    called: tuple[str, ...]
    left: dict[str, str]
    sending: bool
    closed: bool
    said: str
    ok: bool = True
    inside: tuple[Resent, ...] = ()
    unknown: Unknown | None = None

    @classmethod
    def refused(cls, batch_id: str, why: str) -> Resent:
        """Nothing was tried."""
        return cls(batch_id, (), (), (), (), {}, False, False, why, ok=False)

    @property
    def is_well(self) -> bool:
        """Nothing of it is left to be looked at."""
        is_left = self.failed or self.left or (self.sending and not self.closed)
        is_known = self.ok and self.unknown is None
        return is_known and not is_left and all(one.is_well for one in self.inside)

    @property
    def found_nothing(self) -> bool:
        """There was nothing that anything could be done about, and that is known."""
        done = self.ended or self.resent or self.failed or self.called
        return not (done or self.left or self.unknown)
