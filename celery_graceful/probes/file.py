"""The file that a worker touches for as long as it lives, for probes that ask no worker."""

from __future__ import annotations

import fcntl
import os
import time

import celery_graceful_probe
from celery_graceful.exceptions import SettingsError

__all__ = ["ProbeFile"]


class ProbeFile:
    """That of one worker, which has it for itself: it is locked.

    Raises:
        SettingsError: Another worker has it, or it cannot be written.
    """

    def __init__(self, path: str, stale: float) -> None:
        self.path = path
        self._stale = stale
        self._text = ""
        self._alive_at = time.time()
        try:
            self._fd = self._open()
        except BlockingIOError:
            mend = "another worker has that file, give each its own, as in /run/celery/%p"
            raise SettingsError("graceful_probe_file", path, mend) from None
        except OSError as exc:
            raise SettingsError("graceful_probe_file", path, f"{exc.strerror}") from exc

    def _open(self) -> int:
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.stat(self.path), os.fstat(fd)):
                    return fd
            except FileNotFoundError:
                pass  # who had it has just taken it away
            except OSError:
                os.close(fd)
                raise
            os.close(fd)

    def write(self, not_live: str, not_ready: str) -> None:
        """Say how the worker is."""
        if not not_live:
            self._alive_at = time.time()
        text = celery_graceful_probe.written(self._stale, not_ready)
        if text != self._text:
            os.pwrite(self._fd, text.encode(), 0)
            os.ftruncate(self._fd, len(text.encode()))
            self._text = text
        os.utime(self._fd, (self._alive_at, self._alive_at))

    def remove(self) -> None:
        """The worker ends."""
        try:
            os.unlink(self.path)
        except OSError:
            pass  # somebody has, or may not
        self._close()

    def close_inherited(self) -> None:
        """In a forked child, which has nothing to do with it."""
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
