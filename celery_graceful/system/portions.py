"""Portions: work for another process, in pieces each of which takes it a short time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

__all__ = ["BYTES", "COUNT", "portions"]

#: Pieces in one portion, and bytes after which it has enough: a server that does one thing after
#: the other is held up for some tens of milliseconds.
COUNT, BYTES = 500, 4_000_000

_Piece = TypeVar("_Piece")


def portions(pieces: Sequence[_Piece], size: Callable[[_Piece], int]) -> Iterator[Sequence[_Piece]]:
    """The pieces, in their order. One that is too large for a portion is one of its own.

    Args:
        pieces: What is to be done.
        size: Bytes of a piece.
    """
    start = total = 0
    for end, piece in enumerate(pieces):
        more = size(piece)
        if end > start and (end - start >= COUNT or total + more > BYTES):
            yield pieces[start:end]
            start, total = end, 0
        total += more
    if start < len(pieces):
        yield pieces[start:]
