"""Processes that end with the one that started them, whatever ends that.

A small guard process per process reads from a pipe: when the pipe breaks, it kills the process
with its children, and removes its folder.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

LOOPBACK = "127.0.0.1"


#: UDP sockets on the ports that this process gave out: a mark that other test processes see.
_taken: list[socket.socket] = []


def free_port() -> int:
    """A port that is free, and that no other test process on this machine gets.

    It is outside of the range that systems give to outgoing connections, so nobody takes it by
    chance before a server listens on it, or while one that is to come back is down.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        mark = socket.socket(type=socket.SOCK_DGRAM)
        with socket.socket() as probe:
            # As servers do: else a port counts as taken long after its last connection.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                mark.bind((LOOPBACK, port))
                probe.bind((LOOPBACK, port))
            except OSError:
                mark.close()
                continue
        _taken.append(mark)
        return port


Self = TypeVar("Self", bound="ProcessGroup")


class ProcessGroup:
    """A process with its children, in a group of its own; as a context manager, it ends with it.

    Args:
        argv: The command line.
        options: Of ``Popen``: ``env``, ``cwd``, where its output goes.
    """

    GUARD = 'read -r _ || kill -9 "-$0"'

    def __init__(self, argv: Sequence[str], **options: Any) -> None:
        self.process = self._start(argv, **options)
        self.pid = self.process.pid
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", self.GUARD, str(self.pid)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @classmethod
    def _start(cls, argv: Sequence[str], **options: Any) -> Any:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, **options)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """End it and its children at once, if they run."""
        if self._guard.returncode is not None:
            return  # they are gone, and their number may be another's by now
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self._guard.communicate(b"\n")


class GuardedProcess:
    """A process in a session of its own, killed when the process that started it is gone."""

    # `ulimit`: Erlang closes every possible file at start, some containers allow a billion.
    LAUNCH = 'ulimit -n 8192 2> /dev/null; exec "$@"'
    GUARD = 'read -r _ || { kill -9 "-$0"; rm -rf "$1"; }'

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], folder: Path) -> None:
        with (folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", self.LAUNCH, "launch", *argv],
                env=env,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", self.GUARD, str(self.pid), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def alive(self) -> bool:
        """Whether it runs; a paused process does."""
        return self._process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to the process and its children."""
        if self.alive():
            os.killpg(self.pid, number)

    def wait_paused(self) -> None:
        """Wait until SIGSTOP has taken effect."""
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def end(self, number: int, timeout: float) -> None:
        """Send the signal, wait for the end, and kill after `timeout` seconds."""
        self.signal(number)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self._process.wait()
        self._guard.communicate(b"\n")
