"""What a source is, and those that need nothing but Python."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence, Set, Sized
from typing import Any, Generic, TypeVar

from celery_graceful.exceptions import CheckpointError
from celery_graceful.system.arguments import check_call, name_of

__all__ = ["IterableSource", "SequenceSource", "Source", "as_source", "pages"]

T = TypeVar("T")

#: Sets by their interface, in the order of their dict.
_ORDERED: tuple[type, ...] = (type({}.keys()), type({}.items()))


class Source(Generic[T]):
    """Base of all sources; derive from it for your own."""

    #: Says what a cursor means. A loop does not go on from a cursor of another kind.
    kind = "source"

    def pairs(self, cursor: Any) -> Iterator[tuple[Any, T]]:
        """Each item that comes after ``cursor``, with the cursor after it.

        Args:
            cursor: What stood beside the last item that is done; ``None``: from the beginning.
        """
        raise NotImplementedError

    def check(self, cursor: Any) -> None:
        """Whether the source can go on from there; called before ``pairs``.

        Args:
            cursor: As it comes from the store, or from the task.

        Raises:
            CheckpointError: It cannot; the message says why.
        """


class _Counted(Source[T]):
    kind = "sequence"

    def check(self, cursor: Any) -> None:
        if cursor is not None and (type(cursor) is not int or cursor < 0):
            raise CheckpointError(
                f"cursor={cursor!r} is a {type(cursor).__name__}: the cursor of a sequence or "
                "an iterable is the number of items that are done."
            )


class SequenceSource(_Counted[T]):
    """Goes on by index, without walking."""

    def __init__(self, items: Sequence[T]) -> None:
        self.items = items

    def pairs(self, cursor: int | None) -> Iterator[tuple[int, T]]:
        if not cursor:
            return enumerate(self.items, 1)
        rest = map(self.items.__getitem__, range(cursor, len(self.items)))
        return enumerate(rest, cursor + 1)


class IterableSource(_Counted[T]):
    """Goes on by position; whoever opens it walks ``items`` to there."""

    def __init__(self, items: Iterable[T]) -> None:
        self.items = iter(items)

    def pairs(self, cursor: int | None) -> Iterator[tuple[int, T]]:
        return enumerate(self.items, (cursor or 0) + 1)


def as_source(given: Iterable[T] | Source[T]) -> Source[T]:
    """``given``, or the source that fits it.

    Raises:
        CheckpointError: It has no order to go on in.
    """
    if isinstance(given, Source):
        return given
    if isinstance(given, Set) and not isinstance(given, _ORDERED):
        raise CheckpointError(
            f"a {type(given).__name__} has another order in another process: iterate over "
            "sorted(...) of it."
        )
    if hasattr(given, "query") and hasattr(given, "model"):
        raise CheckpointError("wrap the QuerySet: iterate(celery_graceful.sources.queryset(qs)).")
    if isinstance(given, Sequence):
        return SequenceSource(given)
    if isinstance(given, Iterable):
        return IterableSource(given)
    if isinstance(given, AsyncIterable):
        raise CheckpointError(
            f"{given!r} is asynchronous: iterate over a list of what it gives, or over pages."
        )
    raise CheckpointError(
        f"{given!r} cannot be iterated over: give a list, an iterable or one of "
        "celery_graceful.sources."
    )


class pages(Source[T]):
    """The items of an API, page by page.

    Args:
        fetch: Takes a page's cursor, ``None`` for the first page; returns the page's items
            and the next page's cursor, ``None`` after the last page.
    """

    kind = "pages"

    def __init__(self, fetch: Callable[[Any], tuple[Iterable[T], Any]]) -> None:
        check_call("pages", fetch, why_not_async="give one that runs it to its end")
        self.fetch = fetch

    def check(self, cursor: Any) -> None:
        if cursor is not None and not (isinstance(cursor, (list, tuple)) and len(cursor) == 2):
            raise CheckpointError(
                f"cursor={cursor!r}: the cursor of pages is [page, items done of it]."
            )

    def pairs(self, cursor: Any) -> Iterator[tuple[Any, T]]:
        page, done = cursor or (None, 0)
        while True:
            items, following = self._fetch(page)
            for number, item in enumerate(items, 1):
                if number > done:
                    yield [page, number], item
            if following is None:
                return
            page, done = following, 0

    def _fetch(self, page: Any) -> tuple[Iterable[T], Any]:
        found = self.fetch(page)
        if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Iterable):
            return found
        raise CheckpointError(
            f"{name_of(self.fetch)}({page!r}) returned {_shortly(found)}: return a tuple of the "
            "page's items and the next page's cursor, which is None after the last page."
        )


def _shortly(value: Any) -> str:
    size = f" of {len(value)}" if isinstance(value, Sized) else ""
    return "None" if value is None else f"a {type(value).__name__}{size}"
