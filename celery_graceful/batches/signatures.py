"""What users give a batch: signatures, batches, and iterables of them.

A signature is a member, each of those in a group is one, and a batch inside of a batch is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from celery import Signature, Task, chunks, group
from celery.result import ResultBase

__all__ = [
    "LATER",
    "NoMember",
    "Recalled",
    "flatten",
    "is_used_up",
    "named",
    "options_in",
    "size_of",
    "visible",
]

#: Of an argument or signature that a message quotes.
SHOWN = 100

#: Options that say something of the group itself; each of its tasks is sent with the others.
_OF_A_GROUP = frozenset(
    ("task_id", "root_id", "parent_id", "group_id", "group_index", "chord", "link", "link_error")
)

#: In place of members that are not made yet.
LATER: Final = object()


class NoMember(TypeError):
    """Something else was given in place of a member."""


def flatten(given: Any, nested: type) -> Iterator[Any]:
    """The signatures and batches in what was given: one of them, or an iterable of such.

    Args:
        given: What a user gave.
        nested: The class of batches.

    Raises:
        NoMember: There is something else among it.
    """
    if isinstance(given, nested):
        yield given
    elif isinstance(given, chunks):
        yield from flatten(given.group(), nested)
    elif isinstance(given, group):
        more = options_in(given)
        for one in given.tasks:
            for sig in flatten(one, nested):
                yield sig.clone(**more) if more else sig
    elif isinstance(given, Signature):
        yield given
    elif isinstance(given, Mapping):
        if not isinstance(given.get("task"), str):
            raise NoMember(_no_member(given))
        yield from flatten(Signature.from_dict(dict(given)), nested)
    elif isinstance(given, Iterable) and not isinstance(given, _NO_MEMBERS):
        for one in given:
            yield from flatten(one, nested)
    else:
        raise NoMember(_no_member(given))


def options_in(given: group) -> dict[str, Any]:
    """The options of a group that each of its tasks is sent with."""
    return {name: value for name, value in given.options.items() if name not in _OF_A_GROUP}


#: What can be iterated over all the same.
_NO_MEMBERS = (str, bytes, ResultBase, Task)


def visible(given: Any, nested: type) -> Iterator[Any]:
    """As ``flatten``, of what is there already; ``LATER`` for what makes its members when asked.

    Args:
        given: What a user gave.
        nested: The class of batches.

    Raises:
        NoMember: There is something else among it.
    """
    if isinstance(given, group):
        given = given.tasks
    if isinstance(given, (list, tuple)):
        for one in given:
            yield from visible(one, nested)
    elif isinstance(given, chunks):
        yield LATER
    elif isinstance(given, (nested, Mapping, *_NO_MEMBERS)) or not isinstance(given, Iterable):
        yield from flatten(given, nested)
    else:
        yield LATER


class Recalled(Iterator[Any]):
    """An iterator whose first items are remembered, for who has to begin again.

    Args:
        given: The iterator.
        most: How many of them.
    """

    def __init__(self, given: Iterator[Any], most: int) -> None:
        self._given = given
        self._most = most
        self._first: list[Any] = []

    def __next__(self) -> Any:
        one = next(self._given)
        if len(self._first) < self._most:
            self._first.append(one)
        return one

    def all(self) -> list[Any]:
        """All of it once more, if no more than can be remembered were taken."""
        return [*self._first, self._given]


def _no_member(given: Any) -> str:
    mend = "give signatures, such as task.s(1), groups, batches, or an iterable of them"
    if isinstance(given, ResultBase):
        mend = "it was sent already: give the signature, task.s(...), in place of task.delay(...)"
    elif isinstance(getattr(given, "name", None), str) and hasattr(given, "apply_async"):
        mend = f"give its signature, such as {given.name.rpartition('.')[2]}.s(1)"
    return f"{named(given)} is no member of a batch: {mend}"


def is_used_up(given: Any) -> bool:
    """Whether some of what was given cannot be iterated over once more."""
    if isinstance(given, (list, tuple)):
        return any(map(is_used_up, given))
    return isinstance(given, Iterator)


def named(thing: Any) -> str:
    """How a message calls what a user gave."""
    text = repr(thing)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def size_of(given: Any) -> int | None:
    """How many members there will be, where that can be seen without making them."""
    if isinstance(given, (list, tuple)):
        sizes = [size_of(one) for one in given]
        return None if None in sizes else sum(size for size in sizes if size is not None)
    return 1 if isinstance(given, Signature) and not isinstance(given, group) else None
