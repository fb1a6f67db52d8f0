"""Real Redis and RabbitMQ servers for tests, each on free loopback ports in a folder of its own.

A server ends with the process that started it: see `tests.support.processes`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import amqp
import redis

from tests.support.processes import LOOPBACK, GuardedProcess, free_port

AServer = TypeVar("AServer", bound="Server")
AnyServer = TypeVar("AnyServer", bound="Startable")

# Debian's wrapper in /usr/sbin changes the user and the environment: the plain script comes first.
SEARCH_PATH = os.pathsep.join(
    ["/usr/lib/rabbitmq/bin", os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"]
)


class Startable(Protocol):
    """What a test can start for itself: one server, or some that belong together."""

    @classmethod
    def missing(cls) -> list[str]:
        """The programs that it needs and this machine has not."""

    def start(self) -> None:
        """Start it and return when it answers."""

    def close(self) -> None:
        """End it at once and remove its folder."""


class Server(ABC):
    """The life of a server. Use it as a context manager, or call `start` and `close`.

    `stop`, `kill` and `start` keep port and folder: clients can connect again after them.
    """

    programs: ClassVar[Sequence[str]]
    start_timeout: ClassVar[float] = 300.0

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="celery-graceful-"))
        self.processes: list[GuardedProcess] = []

    def __enter__(self: AServer) -> AServer:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @classmethod
    def missing(cls) -> list[str]:
        """The programs that it needs and this machine has not."""
        return [name for name in cls.programs if not shutil.which(name, path=SEARCH_PATH)]

    @property
    def pid(self) -> int:
        """The process id of the server itself."""
        return self.processes[-1].pid

    def start(self) -> None:
        """Start it and return when it answers."""
        try:
            self._launch()
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def stop(self, timeout: float = 60.0) -> None:
        """End it in good order (SIGTERM)."""
        self.resume_processes()
        self._end(signal.SIGTERM, timeout)

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._end(signal.SIGKILL, timeout=60.0)

    def restart(self) -> None:
        """Stop it in good order and start it again."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open and nothing answers."""
        self.processes[-1].signal(signal.SIGSTOP)
        self.processes[-1].wait_paused()

    def resume(self) -> None:
        """Go on after `pause`, and return when it answers."""
        self.resume_processes()
        self._wait_until_ready()

    def resume_processes(self) -> None:
        """Go on after `pause`, without waiting."""
        for process in self.processes:
            process.signal(signal.SIGCONT)

    def running(self) -> bool:
        """Whether its processes live; they do while it is paused."""
        return bool(self.processes) and all(process.alive() for process in self.processes)

    def ensure_running(self) -> None:
        """Make good whatever a test did to it."""
        if self.running():
            self.resume()
        else:
            self.kill()
            self.start()

    def close(self) -> None:
        """End it at once and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @abstractmethod
    def _launch(self) -> None:
        """Start the processes with `_spawn`, the server's own as the last one."""

    @abstractmethod
    def _ping(self) -> None:
        """Raise an `OSError`, `RedisError` or `AMQPError` while it is not ready."""

    def _spawn(self, program: str, *args: str, **env: str) -> None:
        path = shutil.which(program, path=SEARCH_PATH)
        if path is None:
            raise FileNotFoundError(program)
        self.processes.append(GuardedProcess([path, *args], self._env(**env), self.folder))

    def _env(self, **more: str) -> dict[str, str]:
        """What its programs are told: nothing of this machine's."""
        return {"PATH": SEARCH_PATH, "HOME": str(self.folder), "LANG": "C.UTF-8", **more}

    def _end(self, number: int, timeout: float) -> None:
        while self.processes:
            self.processes[-1].end(number, timeout)
            self.processes.pop()

    def _wait_until_ready(self) -> None:
        _check_loopback()
        deadline = time.monotonic() + self.start_timeout
        while True:
            try:
                return self._ping()
            except (OSError, redis.RedisError, amqp.AMQPError) as error:
                alive = self.running()
                if alive and time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                output = (self.folder / "output").read_text(errors="replace")[-2000:]
                problem = "does not answer" if alive else "ended while it started"
                raise RuntimeError(f"{type(self).__name__} {problem}:\n{output}") from error


def _check_loopback() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((LOOPBACK, 9))  # sends nothing
        except OSError as error:
            raise RuntimeError(f"{LOOPBACK} is not reachable: `ip link set lo up`") from error
