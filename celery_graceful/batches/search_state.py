"""Members that are looked for, until they have been found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

__all__ = ["Doubt", "Sought", "Unknown", "callback_member", "callback_name"]

_CALLBACK = "callback:"


def callback_member(name: str) -> str:
    """How a callback is called among the members of its batch."""
    return _CALLBACK + name


def callback_name(member: str) -> str | None:
    """The callback that a member is; ``None`` for one that is none."""
    return member[len(_CALLBACK) :] if member.startswith(_CALLBACK) else None


class Doubt(NamedTuple):
    """Why what was not found may be somewhere all the same.

    Attributes:
        why: For people.
        age: Seconds; of a batch that has stood still for so long it is listed as missing.
        mend: When it can be known, for people; empty if nobody can tell.
    """

    why: str
    age: float
    mend: str = ""


class Unknown(NamedTuple):
    """What may be missing of a batch, or be somewhere: it is not listed as missing.

    Attributes:
        number: How many members and callbacks.
        doubt: Why nobody knows.
    """

    number: int
    doubt: Doubt


class Sought:
    """Members of some batches that nobody has found yet.

    Args:
        members: Batch -> its members.
    """

    def __init__(self, members: Mapping[str, Iterable[str]]) -> None:
        self._members = {batch: left for batch, some in members.items() if (left := set(some))}
        #: Batch -> why its members may be somewhere.
        self.doubts: dict[str, Doubt] = {}

    def __bool__(self) -> bool:
        return bool(self._members)

    def __iter__(self) -> Iterator[tuple[str, set[str]]]:
        return iter(list(self._members.items()))

    def doubt(self, batch: str, doubt: Doubt) -> None:
        """What is left of a batch may be somewhere; the doubt that lasts longest counts."""
        if batch not in self.doubts or self.doubts[batch].age < doubt.age:
            self.doubts[batch] = doubt

    def found(self, memberships: Iterable[str]) -> int:
        """They are somewhere, each said as ``<batch>/<member>``; how many were looked for."""
        count = 0
        for membership in memberships:
            batch, _, member = membership.partition("/")
            left = self._members.get(batch)
            if left is not None and member in left:
                count += 1
                left.discard(member)
                if not left:
                    del self._members[batch]
        return count
