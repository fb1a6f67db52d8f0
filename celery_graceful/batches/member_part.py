"""What a task is to a batch: one of those that a member, or a callback, is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from celery_graceful.batches.marks import BATCH, LAST, callback_id, callback_of, member_of
from celery_graceful.batches.model import Outcome
from celery_graceful.batches.search_state import callback_member

__all__ = ["CallbackEnd", "Fields", "Part", "Told", "end_of_success", "fields_of", "part_of"]


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


#: The fields of an ``End``. As text: garbage collection passes over a tuple of those.
Fields = tuple[str, str, str, tuple[str, int] | None]

#: What the ledger is told when a task has ended. Of a member that has succeeded, as most do, it is
#: the mark in its headers: many are kept for a while, and nothing has to be made for them.
Told = str | Fields | CallbackEnd


class Part(NamedTuple):
    """One task of a member, or of a callback.

    Attributes:
        batch: Id of the batch.
        name: The member, or the name of the callback.
        last: Id of the task by whose success it has ended.
        is_callback: Which of the two.
    """

    batch: str
    name: str
    last: str
    is_callback: bool

    @property
    def membership(self) -> str:
        """What it is of a batch, as it is looked for."""
        name = callback_member(self.name) if self.is_callback else self.name
        return f"{self.batch}/{name}"

    def end(self, outcome: Outcome) -> Told:
        """What the ledger is told when the whole has ended."""
        if self.is_callback:
            return CallbackEnd(self.batch, self.name)
        return self.batch, self.name, outcome._value_, None  # ``value`` asks twice for it


def part_of(headers: Mapping[str, Any]) -> Part | None:
    """What a task is to a batch; ``None`` for all those that are nothing to any."""
    if BATCH in headers:
        member = member_of(headers)
        return Part(*member, member.name, False) if member is not None else None
    callback = callback_of(headers)
    if callback is None:
        return None
    return Part(*callback, headers.get(LAST) or callback_id(*callback), True)


def end_of_success(headers: Mapping[str, Any], task_id: str) -> Told | None:
    """What the ledger is told when a task has succeeded; ``None`` if nothing is done by that.

    Args:
        headers: Of its message.
        task_id: Its id.
    """
    if BATCH in headers:  # each member comes here: few steps
        mark = headers[BATCH]
        is_last = isinstance(mark, str) and mark.partition("/")[2] == task_id
        return mark if is_last else None
    part = part_of(headers)
    return part.end(Outcome.SUCCEEDED) if part is not None and part.last == task_id else None


def fields_of(end: str | Fields) -> Fields:
    """The end of a member, spelled out."""
    if not isinstance(end, str):
        return end
    batch, _, member = end.partition("/")
    return batch, member, Outcome.SUCCEEDED._value_, None
