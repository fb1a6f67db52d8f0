"""The file behind the board of a worker that spawns its children: they do not inherit memory."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

__all__ = ["BoardFile", "announced_file"]

logger = logging.getLogger(__name__)

#: Where a child finds it.
ENV = "CELERY_GRACEFUL_BOARD"

PREFIX = "celery-graceful-board-"

#: Seconds in which a new file may not be locked yet.
NEW = 60.0


class BoardFile:
    """A new file, announced in the environment, and locked as long as this process lives.

    Args:
        size: In bytes.
    """

    def __init__(self, size: int) -> None:
        import fcntl  # not everywhere, and only here needed

        _remove_leftovers()
        self._owner = os.getpid()
        self.fd, self.path = tempfile.mkstemp(prefix=PREFIX)
        fcntl.flock(self.fd, fcntl.LOCK_SH)
        os.truncate(self.fd, size)
        os.environ[ENV] = self.path

    def remove(self) -> None:
        """Remove it, if this process made it; doing so twice is the same as once."""
        if self.fd < 0 or self._owner != os.getpid():
            return
        os.environ.pop(ENV, None)
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
        os.close(self.fd)
        self.fd = -1


@contextmanager
def announced_file() -> Iterator[BinaryIO | None]:
    """The file that the parent has announced, open; ``None`` if it has not."""
    path = os.environ.get(ENV)
    if path is None:
        yield None
    else:
        with open(path, "r+b") as file:
            yield file


def _remove_leftovers() -> None:
    """Files of workers that were killed: nobody holds the lock."""
    import fcntl

    directory = tempfile.gettempdir()
    for name in os.listdir(directory):
        if not name.startswith(PREFIX):
            continue
        path = os.path.join(directory, name)
        try:
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(file.fileno()).st_mtime > NEW:
                    os.unlink(path)
        except OSError as exc:  # a living worker's, another user's, or gone by now
            logger.debug("%s stays: %r", path, exc)
