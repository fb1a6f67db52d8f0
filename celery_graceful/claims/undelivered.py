"""What was fetched along with others and has still to be delivered: one after the other.

Delivering one may wait, for room in a pool of greenlets, or for the task itself in solo. Whoever
takes a message from here first has it: the loop, to deliver it, or the drain, which gives all that
are left back together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from kombu.utils.encoding import bytes_to_str

from celery_graceful.messages.fields import fields_of, parse

__all__ = ["Fetched", "Undelivered"]


class Fetched(NamedTuple):
    """A message that is a claim, and not delivered yet.

    Attributes:
        queue: Where it came from.
        text: As it was there.
        delivery_tag: Of the claim.
    """

    queue: str
    text: Any
    delivery_tag: Any

    @property
    def task(self) -> tuple[str, str]:
        """Id and name of its task, empty where it says none."""
        try:
            fields = fields_of(parse(bytes_to_str(self.text)))
            return str(fields.get("id") or ""), str(fields.get("task") or "")
        except Exception:  # what can be in a queue can raise anything
            return "", ""


class Undelivered:
    """Of one worker. Each step is one of C's: from any thread."""

    def __init__(self) -> None:
        self._waiting: deque[Fetched] = deque()

    def add(self, found: Iterable[Fetched]) -> None:
        """They were fetched, in this order."""
        self._waiting.extend(found)

    def next(self) -> Fetched | None:
        """Take the first one; ``None`` if there is none any more."""
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def take(self) -> list[Fetched]:
        """Take all, to give them back."""
        return list(iter(self.next, None))
