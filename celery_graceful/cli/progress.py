"""What takes longer than a second says so, on a terminal: a line that is gone when it is done."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TextIO

import click

from celery_graceful.cli.output import is_dumb

__all__ = ["Working"]

#: Seconds until it says something, and between two times.
QUIET, AGAIN = 1.0, 1.0

#: Goes to the start of a line, and empties it.
EMPTY = "\r\x1b[K"


class Working:
    """What is waited for, said on standard error; nowhere if that is no terminal.

    Args:
        what: Is done.
        stream: In place of standard error.
    """

    def __init__(self, what: str, stream: TextIO | None = None) -> None:
        self.what = what
        self._stream = stream or sys.stderr
        self._lock, self._over = threading.Lock(), threading.Event()
        self._shown = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Working:
        if self._stream.isatty() and not is_dumb():
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        with self._lock:
            self._hide()

    def echo(self, line: str) -> None:
        """Print a line, above what is said."""
        with self._lock:
            self._hide()
            click.echo(line)

    def _run(self) -> None:
        began = time.monotonic()
        pause = QUIET
        while not self._over.wait(pause):
            pause = AGAIN
            with self._lock:
                if self._over.is_set():
                    return
                self._write(f"{EMPTY}{self.what} ... {time.monotonic() - began:.0f} s")
                self._shown = True

    def _hide(self) -> None:
        if self._shown:
            self._write(EMPTY)
            self._shown = False

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # nobody looks any more
            self._over.set()
