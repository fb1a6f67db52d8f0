"""A bar on the terminal."""

from __future__ import annotations

import shutil
import sys
import time

__all__ = ["Bar"]

#: Seconds between two drawings.
PAUSE = 0.1

WIDTH = 30


class Bar:
    """One line that is drawn again and again, where there is a terminal to draw it on.

    Args:
        label: What it is about.
        wanted: Whether it was asked for.
    """

    def __init__(self, label: str, *, wanted: bool) -> None:
        self.label = label
        self.stream = sys.stderr
        self.on = wanted and bool(getattr(self.stream, "isatty", bool)())
        self._next = 0.0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.on and self._next:
            self.stream.write("\n")
            self.stream.flush()

    def draw(self, done: int, total: int | None, more: str = "", *, last: bool = False) -> None:
        """Say how far it is.

        Args:
            done: How many.
            total: Of how many; ``None`` where nobody knows.
            more: Said behind it.
            last: The last word, which is drawn in any case.
        """
        now = time.monotonic()
        if not self.on or (now < self._next and not last):
            return
        self._next = now + PAUSE
        if total is None:
            text = f"{self.label} {done:,}"
        else:
            part = done / total if total else 1.0
            full = int(WIDTH * part)
            text = f"{self.label} [{'#' * full:<{WIDTH}}] {done:,}/{total:,} {part:4.0%}"
        width = shutil.get_terminal_size().columns - 1
        self.stream.write("\r" + f"{text}{more}"[:width].ljust(width))
        self.stream.flush()
