"""The timeline, as it happens: in colour on a terminal, plain when piped."""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO

__all__ = ["Timeline", "paint"]

_COLOURS = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "magenta": "35",
    "cyan": "36",
}


def paint(text: str, colour: str, out: TextIO) -> str:
    """``text`` in a colour, where ``out`` is a terminal and NO_COLOR is not set."""
    if not colour or not out.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{_COLOURS[colour]}m{text}\033[0m"


class Timeline:
    """Writes a line for each thing that happens.

    Args:
        out: Where to.
    """

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self.out = out
        self.began_at = time.monotonic()
        #: When the old worker was told to stop.
        self.term_at: float | None = None

    def count_from(self, moment: float) -> None:
        """Seconds since SIGTERM are counted from then on."""
        self.term_at = moment

    def title(self, text: str) -> None:
        """A line of its own kind."""
        self.write(f"\n{paint(text, 'bold', self.out)}\n")

    def head(self) -> None:
        """Say what the columns are."""
        columns = f"{'seconds':>8} {'SIGTERM':>8}  {'who':<9} what"
        self.write(paint(columns, "dim", self.out))

    def event(
        self, who: str, what: str, task: str = "", *, at: float | None = None, colour: str = ""
    ) -> None:
        """Something happened.

        Args:
            who: ``platform``, ``service``, or a worker's name.
            what: In words.
            task: The task that it happened to.
            at: When, on the monotonic clock; now if not given.
            colour: Of the words.
        """
        at = time.monotonic() if at is None else at
        since_term = f"{self.since_term(at):+8.2f}" if self.term_at is not None else ""
        name = f"{task:<17}" if task else ""
        clock = paint(f"{at - self.began_at:8.2f} {since_term:>8}", "dim", self.out)
        self.write(f"{clock}  {who:<9} {name}{paint(what, colour, self.out)}")

    def since_term(self, at: float) -> float:
        """Seconds from SIGTERM to ``at``."""
        assert self.term_at is not None
        return at - self.term_at

    def write(self, line: str) -> None:
        """Write a line now."""
        print(line, file=self.out, flush=True)
