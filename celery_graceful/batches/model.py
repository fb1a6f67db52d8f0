"""The words of batches: how members end, and the callbacks that follow."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from kombu.utils.json import dumps, loads

from celery_graceful.system.known_fields import known_fields

__all__ = [
    "CALLBACKS",
    "ON_COMPLETE",
    "ON_FAILURE",
    "ON_SUCCESS",
    "SENT_LATER",
    "Adds",
    "Callback",
    "Due",
    "End",
    "Opened",
    "Outcome",
    "Place",
    "State",
]

ON_SUCCESS, ON_COMPLETE, ON_FAILURE = CALLBACKS = ("on_success", "on_complete", "on_failure")


class State(str, enum.Enum):
    """What a batch is in."""

    OPEN = "open"
    SENDING = "sending"
    SENT = "sent"
    DONE = "done"
    CANCELLED = "cancelled"


#: Those of what is still to be sent, or some of it.
SENT_LATER = (State.OPEN, State.SENDING)


class Outcome(str, enum.Enum):
    """How a member has ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REVOKED = "revoked"


class End(NamedTuple):
    """The end of a member.

    Attributes:
        batch: Id of the batch.
        member: Id of the member.
        outcome: How it has ended.
        claim: Worker and number of the claim that goes with it, where the broker is the Redis of
            the ledger. If it is gone, this end does not count.
    """

    batch: str
    member: str
    outcome: Outcome
    claim: tuple[str, int] | None = None


class Adds(NamedTuple):
    """Who adds a batch to another one.

    Attributes:
        task: Id of the task that does.
        like: What the batch is like; two that are alike can go on with each other. No spaces.
        run: Which run of the task.
    """

    task: str
    like: str
    run: str


class Place(NamedTuple):
    """Where a batch stands in what is sent to another one.

    Attributes:
        name: Of the place; what is sent again has the same ones. No two batches have one.
        sender: Who sends that other one.
    """

    name: str
    sender: str


class Opened(NamedTuple):
    """A batch that is open.

    Attributes:
        id: Of it.
        was: The state that it was in; ``None``: it is new.
    """

    id: str
    was: State | None


class Due(NamedTuple):
    """A callback that has become due, and is in the outbox."""

    batch: str
    name: str

    def __str__(self) -> str:
        return f"{self.batch}:{self.name}"

    @classmethod
    def parse(cls, text: str) -> Due:
        """As it stands in the outbox."""
        batch, _, name = text.rpartition(":")
        return cls(batch, name)

    @classmethod
    def parse_all(cls, texts: Iterable[str]) -> list[Due]:
        """As scripts answer."""
        return [cls.parse(text) for text in texts]


@dataclass(frozen=True)
class Callback:
    """What is sent when something is due.

    Attributes:
        id: Of its task, fixed when the batch is created.
        signature: What to send, as a dict.
        takes_summary: It gets the summary as its first argument.
        gathers: It is the body of a chord: it gets the results of the header.
    """

    id: str
    signature: dict[str, Any]
    takes_summary: bool = True
    gathers: bool = False

    def to_json(self) -> str:
        """As it is stored."""
        return str(dumps(vars(self)))

    @classmethod
    def from_json(cls, text: str) -> Callback:
        """What was stored, maybe by a later version."""
        return cls(**known_fields(cls, loads(text)))
