"""Tables by rich, an extra: with a head that stands out, and for letters of two columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["lines_of"]


def lines_of(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    right: Sequence[int],
    elastic: Sequence[int],
    colour: bool,
) -> Iterator[str]:
    """As ``output.table``, a line a row.

    Args:
        head, rows, width, right, elastic: As there.
        colour: Whether there are any.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for at, name in enumerate(head):
        table.add_column(
            name, justify="right" if at in right else "left", no_wrap=at not in elastic
        )
    for row in rows:
        # What a column is too narrow for is cut, not wrapped: a line a row.
        cells = [Text.from_ansi(cell, no_wrap=True, overflow="ellipsis") for cell in row]
        table.add_row(*cells)
    written = StringIO()
    Console(
        file=written,
        width=width,
        color_system="standard" if colour else None,
        force_terminal=colour,
        no_color=not colour,
        highlight=False,
    ).print(table)
    for line in written.getvalue().splitlines():
        yield line.rstrip()
