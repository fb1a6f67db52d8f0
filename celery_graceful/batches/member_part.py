"""What a task is to a batch: one of those that a member, or a callback, is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from celery_graceful.batches.marks import BATCH, CALLBACK, LAST, callback_id, read_mark
from celery_graceful.batches.model import Outcome
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


#: What the ledger is told when a task has ended: of a member the fields of an ``End``, as text.
#: Many are kept for a while, and garbage collection passes over a tuple of those.
Told = tuple[str, str, str, None] | CallbackEnd


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


_make = tuple.__new__  # what a NamedTuple does, without its step in Python


def part_of(headers: Mapping[str, Any]) -> Part | None:
    """What a task is to a batch; ``None`` for all those that are nothing to any."""
    # A worker takes many messages a second: few steps, each of which costs it.
    if BATCH in headers:
        mark = headers[BATCH]
        batch, found, name = mark.partition("/") if isinstance(mark, str) else ("", "", "")
        return _make(Part, (batch, name, name, False)) if found else None
    if CALLBACK in headers:
        callback = read_mark(headers[CALLBACK])
        if callback is not None:
            return Part(*callback, headers.get(LAST) or callback_id(*callback), True)
    return None
