"""A redis-server for one run of the tests."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time

from celery_graceful.system.guarded_process import Process

__all__ = ["MISSING", "RedisServer", "is_installed"]

#: Why tests are skipped without it.
MISSING = (
    "graceful_worker needs redis-server in PATH (apt-get install redis-server, brew install "
    "redis), or a broker of yours: override the fixture graceful_broker"
)

#: Seconds that it may take to answer.
START_TIMEOUT = 30.0

_LOOPBACK = "127.0.0.1"


def is_installed() -> bool:
    """Whether there is a redis-server to start."""
    return shutil.which("redis-server") is not None


class RedisServer:
    """A redis-server on a free loopback port, which keeps nothing, and ends with this process."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="celery-graceful-redis-")
        # Somebody may take the port before the server does.
        for attempt in range(5):
            self.url, self._process = self._start(last=attempt == 4)
            if self._process is not None:
                break

    def _start(self, *, last: bool) -> tuple[str, Process | None]:
        with socket.socket() as probe:
            probe.bind((_LOOPBACK, 0))
            port = probe.getsockname()[1]
        options = {"port": str(port), "bind": _LOOPBACK, "dir": self._folder.name, "save": ""}
        argv = ["redis-server", *(word for key in options for word in (f"--{key}", options[key]))]
        process = Process(argv, output=subprocess.DEVNULL)
        end = time.monotonic() + START_TIMEOUT
        while not _answers(port, process.pid):
            if process.wait(0.02) is not None:
                if last:
                    raise RuntimeError("redis-server ended while it started, five times")
                return "", None
            if time.monotonic() > end:
                process.kill()
                raise RuntimeError(f"redis-server did not answer in {START_TIMEOUT:g} s")
        return f"redis://{_LOOPBACK}:{port}/0", process

    def close(self) -> None:
        """End it, and remove its folder."""
        if self._process is not None:
            self._process.kill()
        self._folder.cleanup()


def _answers(port: int, pid: int) -> bool:
    """Whether that very server does, and not one that was there before."""
    try:
        with socket.create_connection((_LOOPBACK, port), timeout=1) as connection:
            connection.sendall(b"INFO server\r\n")
            return f"process_id:{pid}\r\n".encode() in connection.recv(1 << 16)
    except OSError:
        return False
