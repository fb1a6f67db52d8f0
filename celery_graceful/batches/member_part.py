"""What a task is to a batch: one of those that a member, or a callback, is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from celery_graceful.batches.marks import (
    BATCH,
    CALLBACK,
    LAST,
    Mark,
    callback_id,
    callback_of,
    member_of,
)
from celery_graceful.batches.model import End, Outcome
from celery_graceful.batches.search_state import callback_member

__all__ = ["CallbackEnd", "Part", "Told", "part_of"]


class CallbackEnd(NamedTuple):
    """The end of a callback, whatever it came to.

    Attributes:
        batch: Id of the batch.
        name: Of the callback.
        kept: Its message is kept in quarantine, and runs when it is sent again.
    """

    batch: str
    name: str
    kept: bool = False


#: What the ledger is told when a task has ended.
Told = End | CallbackEnd


class Part(NamedTuple):
    """One task of a member, or of a callback.

    Attributes:
        of: The member or the callback.
        is_callback: Which of the two.
        last: Id of the task by whose success a callback has ended.
    """

    of: Mark
    is_callback: bool
    last: str = ""

    @property
    def membership(self) -> str:
        """What it is of a batch, as it is looked for."""
        name = callback_member(self.of.name) if self.is_callback else self.of.name
        return f"{self.of.batch}/{name}"

    def is_last(self, task_id: str) -> bool:
        """Whether the success of the task of that id is that of the whole."""
        return task_id == (self.last if self.is_callback else self.of.name)

    def end(self, outcome: Outcome) -> Told:
        """What the ledger is told when the whole has ended."""
        if self.is_callback:
            return CallbackEnd(*self.of)
        return End(self.of.batch, self.of.name, outcome)


def part_of(headers: Mapping[str, Any]) -> Part | None:
    """What a task is to a batch; ``None`` for all those that are nothing to any."""
    if BATCH in headers:
        member = member_of(headers)
        return member and Part(member, False)
    if CALLBACK in headers:
        callback = callback_of(headers)
        return callback and Part(callback, True, headers.get(LAST) or callback_id(*callback))
    return None
