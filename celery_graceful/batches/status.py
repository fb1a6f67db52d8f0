"""How a batch stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kombu.utils.json import loads

from celery_graceful.batches.model import CALLBACKS, ON_SUCCESS, State
from celery_graceful.batches.producers import heard_of, is_left

__all__ = ["FIELDS", "Status", "how_it_stands"]

#: What has to be known of a batch to say how it stands.
FIELDS = (
    *(
        "kind",
        "state",
        "total",
        "cleared",
        "cut",
        "lost",
        "missing",
        "created",
        "moved",
        "finished",
    ),
    *("description", "properties", "parent", "key", "sender", "heard"),
    *(f"{what}:{name}" for what in ("callback", "fired") for name in CALLBACKS),
)


def how_it_stands(callback: str, fired: str | None, state: State, cut: bool = False) -> str:
    """How a callback stands, that was fired or not, in a batch of that state.

    Args:
        callback: Its name.
        fired: What became of it, if anything did.
        state: Of the batch.
        cut: The batch was completed by force before all of it was sent.
    """
    never = callback == ON_SUCCESS and (cut or state is State.CANCELLED)
    return fired or ("never" if never else "waiting")


@dataclass(frozen=True)
class Status:
    """How a batch stood when it was asked for. Each member is in one of four counts.

    Attributes:
        id: Of the batch.
        state: What it is in. Of a cancelled one ``finished`` says whether all of it has ended.
        total: How many members it has.
        pending: How many have not ended.
        succeeded: How many have succeeded.
        failed: How many have failed for good.
        revoked: How many were revoked, or have expired.
        missing: How many of the pending, and of the callbacks that were sent, were found
            nowhere, by the last look.
        kids: How many batches inside of it have not ended, with their callbacks.
        created: When, seconds since the epoch.
        moved: When something happened to it last.
        finished: When all of it had ended, with its callbacks; ``None`` before.
        description: For people.
        properties: The user's.
        key: The user's; empty without one.
        parent: The batch that it is a member of.
        kind: ``"batch"``, or ``"chord"`` for what Celery made.
        callbacks: Name -> ``"waiting"``, ``"due"``, ``"published"`` or ``"ended"``; ``"never"`` of
            ``on_success`` where it was cancelled, or completed by force before all was sent.
        heard: When who sends it was last heard of, while it is ``sending``; ``None`` where nobody
            does any more, or not yet.
    """

    id: str
    state: State
    total: int
    pending: int
    succeeded: int
    failed: int
    revoked: int
    missing: int
    kids: int
    created: float
    moved: float
    finished: float | None = None
    description: str = ""
    properties: dict[str, Any] = field(default_factory=dict)
    parent: str | None = None
    kind: str = "batch"
    key: str = ""
    callbacks: dict[str, str] = field(default_factory=dict)
    heard: float | None = None

    @classmethod
    def of(
        cls,
        batch_id: str,
        fields: Mapping[str, str],
        *,
        pending: int,
        succeeded: int,
        failed: int,
        revoked: int,
        kids: int,
    ) -> Status:
        """Of what the store knows: its fields, and how many there are in its sets.

        What is in none of them is pending: where Redis has lost one, nobody knows who was in it,
        but that they have not ended is certain. Of one that was cleared, all but so many that
        were revoked have succeeded.
        """
        lost = int(fields.get("lost", 0))
        revoked += int(fields.get("cleared", 0))
        ended = succeeded + failed + revoked + lost
        total = max(int(fields["total"]), pending + ended)
        if "cleared" in fields:
            succeeded += total - pending - ended
        else:
            pending = total - ended
        state = State(fields["state"])
        under_way = sum(fields.get(f"fired:{name}") == "published" for name in CALLBACKS)
        return cls(
            id=batch_id,
            state=state,
            total=total,
            pending=pending,
            succeeded=succeeded,
            failed=failed + lost,
            revoked=revoked,
            missing=min(pending + under_way, int(fields.get("missing", 0))),
            kids=kids,
            created=int(fields["created"]) / 1000,
            moved=int(fields["moved"]) / 1000,
            finished=int(fields["finished"]) / 1000 if "finished" in fields else None,
            description=fields.get("description", ""),
            properties=loads(fields.get("properties") or "{}"),
            parent=fields.get("parent"),
            kind=fields.get("kind", "batch"),
            key=fields.get("key", ""),
            heard=heard_of(fields),
            callbacks={
                name: how_it_stands(name, fields.get(f"fired:{name}"), state, "cut" in fields)
                for label, _, name in (key.partition(":") for key in sorted(fields))
                if label == "callback"
            },
        )

    def is_left(self, now: float) -> bool:
        """Whether it was sent in part, and nobody sends the rest: its producer died, or failed.

        Args:
            now: Seconds, by the clock of the store.
        """
        return is_left(self.state, self.kind, self.parent, self.heard, now)

    def summary(self) -> dict[str, Any]:
        """What callbacks are given: JSON, as small for many members as for few."""
        return {**vars(self), "state": self.state.value}
