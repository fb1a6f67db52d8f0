"""Processes that end with the one that has started them, whatever ends that: the demo, a test."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO, Any

__all__ = ["Process"]

# Reads from a pipe that the parent holds: when it breaks, the parent is gone.
_GUARD = 'read -r _ || kill -9 "-$0"'


class Process:
    """A process in a group of its own, killed with its children when its parent is gone.

    Args:
        argv: Its command line.
        env: Added to the environment.
        output: Where its output goes; a pipe when it is to be read.
    """

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, output: Any = None
    ) -> None:
        self._process: subprocess.Popen[str] = subprocess.Popen(
            argv,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, str(self.pid)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def output(self) -> IO[str]:
        """Its output, where it goes to a pipe."""
        assert self._process.stdout is not None
        return self._process.stdout

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        self._process.send_signal(number)

    def signal_all(self, number: int) -> None:
        """Send a signal to the process and its children, if it runs."""
        if self._process.poll() is None:
            os.killpg(self.pid, number)

    def wait(self, timeout: float | None) -> int | None:
        """Wait for its end; returns its exit status, ``None`` if it still runs."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it and its children at once, if they run."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        if self._guard.poll() is None:
            self._guard.communicate(b"\n")
