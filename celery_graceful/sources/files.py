"""Text files, by byte offset."""

from __future__ import annotations

import csv as _csv
import os
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, TypeVar

from celery_graceful.exceptions import CheckpointError
from celery_graceful.sources.base import Source

__all__ = ["csv", "lines"]

T = TypeVar("T")


class _File(Source[T]):
    def __init__(self, path: str | os.PathLike[str], encoding: str) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise CheckpointError(f"{path!r} is no file: give its path.")
        self.path = path
        self.encoding = encoding
        if "a\n".encode(encoding)[-2:] != b"a\n":
            raise CheckpointError(
                f"encoding={encoding!r} has line feeds of more than one byte: convert the file "
                "to utf-8."
            )

    def check(self, cursor: Any) -> None:
        if cursor is None:
            return
        if type(cursor) is not int or cursor < 0:
            raise CheckpointError(f"cursor={cursor!r}: the cursor of a file is a byte offset.")
        if cursor > os.path.getsize(self.path):
            raise CheckpointError(
                f"{os.fspath(self.path)!r} is shorter than the {cursor} bytes that were read of "
                "it: it is another file now."
            )

    def _raw(self, offset: int) -> Iterator[tuple[int, str]]:
        with open(self.path, "rb") as file:
            file.seek(offset)
            for line in file:
                # A byte order mark stands at the start of a file alone.
                encoding = "utf-8" if offset and self.encoding == "utf-8-sig" else self.encoding
                offset += len(line)
                yield offset, line.decode(encoding)


class lines(_File[str]):
    """The lines of a text file, without their ends, by byte offset.

    Args:
        path: The file. It may grow, and must not change before the cursor.
        encoding: Its encoding, one in which a line feed is the byte 10.
    """

    kind = "lines"

    def __init__(self, path: str | os.PathLike[str], encoding: str = "utf-8") -> None:
        super().__init__(path, encoding)

    def pairs(self, cursor: int | None) -> Iterator[tuple[int, str]]:
        for offset, line in self._raw(cursor or 0):
            yield offset, line.rstrip("\r\n")


class csv(_File[Any]):
    """The records of a CSV file, by byte offset.

    Args:
        path: The file.
        encoding: As in ``lines``.
        header: The first record names the fields, and the others come as dicts, as of
            ``csv.DictReader``: fields that a record has not are ``None``, and those it has
            beyond the names are a list under the key ``None``. Without, all come as lists.
        fmtparams: Passed to ``csv.reader``: ``delimiter``, ``dialect``, ...
    """

    kind = "csv"

    def __init__(
        self,
        path: str | os.PathLike[str],
        encoding: str = "utf-8",
        *,
        header: bool = True,
        **fmtparams: Any,
    ) -> None:
        super().__init__(path, encoding)
        self.header = header
        self.fmtparams = fmtparams

    def pairs(self, cursor: int | None) -> Iterator[tuple[int, Any]]:
        if not self.header:
            yield from self._records(cursor or 0)
            return
        for offset, names in self._records(0):
            for after, record in self._records(max(offset, cursor or 0)):
                yield after, _named(names, record)
            return

    def _records(self, offset: int) -> Iterator[tuple[int, list[str]]]:
        reached = offset

        def text() -> Iterator[str]:
            nonlocal reached
            for after, line in self._raw(offset):
                reached = after
                yield line

        # The reader takes no more lines than the record has.
        for record in _csv.reader(text(), **self.fmtparams):
            if record:
                yield reached, record


def _named(names: list[str], record: list[str]) -> dict[str | None, Any]:
    row: dict[str | None, Any] = dict(zip_longest(names, record[: len(names)]))
    if len(record) > len(names):
        row[None] = record[len(names) :]
    return row
