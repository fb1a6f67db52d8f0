"""What a command does where nobody can read, or keep, what it has to say.

Imported with each ``celery``, as `group`.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

__all__ = ["Group", "Helpful", "write_nowhere", "writing"]

#: As a shell says it of who died of SIGPIPE; and an error of writing (sysexits.h).
_PIPE_CLOSED, _NOT_WRITTEN = 141, 74

#: What writing to standard output may fail with.
_WRITING = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF))


@contextmanager
def writing() -> Iterator[None]:
    """What cannot be written is one line, and a pipe that was closed none.

    Raises:
        click.exceptions.Exit: With its status.
    """
    _open_what_is_closed()
    try:
        yield
    except OSError as exc:
        closed = isinstance(exc, io.UnsupportedOperation)
        if not closed and exc.errno != errno.EPIPE and exc.errno not in _WRITING:
            raise
        write_nowhere()
        if exc.errno == errno.EPIPE:
            raise click.exceptions.Exit(_PIPE_CLOSED) from exc
        why = "standard output is closed" if closed else exc.strerror
        click.echo(f"Error: what there is to say cannot be written: {why}", err=True)
        raise click.exceptions.Exit(_NOT_WRITTEN) from exc


class Helpful(click.Command):
    """Writes its help as it does all else."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the command line: ``--help`` ends here."""
        with writing():
            return super().make_context(*args, **kwargs)


class Group(Helpful, click.Group):
    """Commands of one kind."""


def write_nowhere() -> None:
    """Python writes the rest of its buffer when it ends."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _open_what_is_closed() -> None:
    """Python has nothing for streams that were closed; the next socket would be in their place."""
    # Whoever writes to what is read only hears of it.
    for name, mode in (("stdin", "r"), ("stdout", "r"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
