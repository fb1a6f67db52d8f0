"""Processes of the `celery` command line, each a fork of one that has imported Celery already.

These imports are half of what the start of a worker costs, and the tests start a thousand of them.
Each is a process of its own as ever, with its own session, environment, output and exit status;
what it has in common with the others is what Celery's command line imports before it has read its
arguments. No app is imported, nor is a thread or a connection there.

`TEST_FRESH=1` starts all of them as users do, `TEST_FRESH=3` those of every third test; chaos,
soak, suites and the benchmarks start all of theirs like that. So are those always that patch what
was imported, with gevent or eventlet.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from tests.support.command import CELERY

__all__ = ["ForkServer", "Forked"]

#: Bytes of one request: a command line and an environment.
ROOM = 1 << 20

#: Options of the interpreter, of the C library, and of what is imported: read once, too early.
READ_EARLY = ("PYTHON", "LD_", "MALLOC_", "OTEL_", "KOMBU_", "CELERY_", "C_", "REMAP_")

#: Celery patches what is to be imported when it reads those names.
PATCHES = {"gevent", "eventlet"}

#: What Celery's command line imports before it imports an app; the rest of Celery and of this
#: package comes after that, when apps and what they use may have patched it. And libraries.
IMPORTED = (
    "celery.bin.celery",
    "amqp.connection",
    "billiard.pool",
    "dateutil.parser",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
    "tzlocal",
)

_STATUS = struct.Struct("i")


class Forked:
    """A process of a fork server, with what tests use of ``subprocess.Popen``."""

    def __init__(self, pid: int, args: Sequence[str], stdout: int, status: int) -> None:
        self.pid = pid
        self.args = args
        self.stdout: IO[bytes] = open(stdout, "rb", buffering=0)  # noqa: SIM115
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        """Its exit status, if it has ended."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, for up to ``timeout`` seconds.

        Raises:
            subprocess.TimeoutExpired: It has not ended.
        """
        if self.returncode is None:
            poller = select.poll()
            poller.register(self._status, select.POLLIN)
            if not poller.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0.0)
            data = os.read(self._status, _STATUS.size)
            assert data, "the fork server is gone"
            (self.returncode,) = _STATUS.unpack(data)
            os.close(self._status)  # its number may be another's from now on
        return self.returncode


class ForkServer:
    """The server of one process of tests, from its first worker to its end.

    Args:
        env: The environment that it starts with.
        cwd: Where it and its forks run.
    """

    def __init__(self, env: Mapping[str, str], cwd: Path) -> None:
        self.env, self.cwd = env, cwd
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
        theirs.close()
        atexit.register(self.close)

    def may_start(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> bool:
        """Whether it makes no difference to that one how it was started."""
        names = {key for key in env.keys() | self.env.keys() if env.get(key) != self.env.get(key)}
        return (
            list(argv[: len(CELERY)]) == CELERY
            and not PATCHES.intersection(argv)
            and not any(name.startswith(READ_EARLY) for name in names)
            and "POOL_START_METHOD" not in env  # its children need a program to start
            and cwd == self.cwd
        )

    def start(self, argv: Sequence[str], env: Mapping[str, str]) -> Forked:
        """Start one, its output in a pipe."""
        ours_out, its_out = os.pipe()
        ours_status, its_status = os.pipe()
        request = json.dumps([list(argv[len(CELERY) :]), dict(env)]).encode()
        with self._lock:
            socket.send_fds(self._control, [request], [its_out, its_status])
            pid = int(self._control.recv(32))
        os.close(its_out)
        os.close(its_status)
        return Forked(pid, argv, ours_out, ours_status)

    def close(self) -> None:
        """End it. What it has started is somebody else's to end."""
        self._control.close()
        self._process.wait()


# -- the server ------------------------------------------------------------------------


def serve(control: socket.socket) -> list[str]:
    """Fork for each who asks; returns in the forks, with their command lines."""
    poller = select.poll()
    poller.register(control, select.POLLIN)
    watched: dict[int, tuple[int, int]] = {}
    ended: dict[int, int] = {}
    while True:
        for fd, _ in poller.poll():
            if fd in watched:
                pid, status = watched.pop(fd)
                poller.unregister(fd)
                os.close(fd)
                _say_how_it_ended(pid, status)
                ended[status] = pid
                poller.register(status, 0)  # until it is read and closed: it stays a zombie
            elif fd in ended:
                poller.unregister(fd)
                os.close(fd)
                os.waitpid(ended.pop(fd), 0)
            else:
                data, fds, _, _ = socket.recv_fds(control, ROOM, 2)
                if not data:
                    os._exit(0)
                pid = os.fork()
                if pid == 0:
                    control.detach()
                    argv, env = json.loads(data)
                    _become(fds[0], env)
                    return list(argv)
                end = os.pidfd_open(pid)
                watched[end] = pid, fds[1]
                poller.register(end, select.POLLIN)
                os.close(fds[0])
                control.send(str(pid).encode())


def _say_how_it_ended(pid: int, to: int) -> None:
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert found is not None
    status = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
    with suppress(BrokenPipeError):  # nobody wants to know
        os.write(to, _STATUS.pack(status))


def _become(output: int, env: dict[str, str]) -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in enumerate((null, output, output)):
        os.dup2(source, target)
    os.closerange(3, 1 << 16)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()


if __name__ == "__main__":
    from tests.support import command

    command.leave_out()
    for module in IMPORTED:
        with suppress(ModuleNotFoundError):  # not each version of Celery has all of those libraries
            importlib.import_module(module)
    argv = serve(socket.socket(fileno=0))
    sys.argv, sys.orig_argv = [command.__file__, *argv], [*CELERY, *argv]
    command.run()
