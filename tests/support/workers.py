"""Real workers as processes: started, watched line by line, signalled, waited for."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import redis
from celery import Celery

from tests.support.command import CELERY
from tests.support.forkserver import ForkServer
from tests.support.processes import ProcessGroup

__all__ = [
    "TIMEOUT",
    "WatchedProcess",
    "Worker",
    "end_leases",
    "environment",
    "wait_until",
    "wait_until_heard",
]

#: Seconds; many times what anything waited for here takes.
TIMEOUT = float(os.environ.get("TEST_TIMEOUT", 60))

ROOT = Path(__file__).parents[2]


def wait_until(condition: Callable[[], object], what: str = "", pause: float = 0.01) -> None:
    """Wait until a condition on a server's data holds; nobody rings for those."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() >= end:
            assert condition(), f"not in time: {what}"  # the machine may have stood still
            return
        time.sleep(pause)


def wait_until_heard(app: Celery) -> None:
    """Wait until a worker hears what is broadcast; before it has subscribed that is lost."""
    end = time.monotonic() + TIMEOUT
    while not app.control.ping(timeout=0.5, limit=1):
        assert time.monotonic() < end, "no worker answers"


def end_leases(client: redis.Redis, *gone: WatchedProcess) -> None:
    """As if the time of those who are gone were up; while they live it is long enough for them.

    Args:
        client: Of where the leases are.
        gone: Whose; if none is named, nobody lives any more.
    """
    pids = {worker.pid for worker in gone}
    for key in client.keys("graceful:lease:*"):
        if not pids or json.loads(client.get(key) or "{}").get("pid") in pids:
            client.delete(key)


def environment(added: Mapping[str, str]) -> dict[str, str]:
    """That of this process and more; wherever a command runs in it, it finds the tests."""
    environ = {**os.environ, "PYTHONUNBUFFERED": "1", **added}
    environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), environ.get("PYTHONPATH", "")])
    )
    return environ


class WatchedProcess(ProcessGroup):
    """A process in a group of its own that is watched line by line.

    Args:
        argv: The command line.
        env: Its environment.
        cwd: Where it runs.
    """

    #: Starts what is a `celery` command, where tests have one.
    server: ClassVar[Callable[[], ForkServer | None]] = staticmethod(lambda: None)

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path = ROOT) -> None:
        self._lines: list[str] = []
        self._rest = b""
        self._news = threading.Condition()
        self._ended = False
        super().__init__(argv, env=env, cwd=cwd)
        assert self.process.stdout is not None
        self._stdout = self.process.stdout
        os.set_blocking(self._stdout.fileno(), False)
        self.stopped_at = 0.0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @classmethod
    def _start(cls, argv: Sequence[str], **options: Any) -> Any:
        server = cls.server()
        if server is not None and server.may_start(argv, **options):
            return server.start(argv, options["env"])
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return super()._start(argv, **options, **output)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, exc, traceback)
        print(f"--- output of worker {self.pid}", *self.lines, sep="\n")  # for a test that fails

    def _read(self) -> None:
        poller = select.poll()
        poller.register(self._stdout)
        while not self._ended:
            poller.poll()
            with self._news:
                self._read_on()
        self._stdout.close()

    def _read_on(self) -> None:
        """Read what there is now; nobody who looks waits for the thread to come round."""
        while not self._ended:
            try:
                data = os.read(self._stdout.fileno(), 1 << 16)
            except BlockingIOError:
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            if not data:
                self._ended = True
                lines += [self._rest] if self._rest else []
            self._lines += [line.decode(errors="replace") for line in lines]
            self._news.notify_all()

    @property
    def lines(self) -> list[str]:
        """All that it has written so far, line by line."""
        with self._news:
            self._read_on()
            return self._lines

    @property
    def output(self) -> str:
        """All that it has written so far."""
        return "\n".join(self.lines)

    def count(self, pattern: str) -> int:
        """How many of its lines match the regular expression."""
        return sum(1 for line in self.lines if re.search(pattern, line))

    def find(self, pattern: str) -> list[re.Match[str]]:
        """What matches the regular expression, line by line."""
        return [found for line in self.lines if (found := re.search(pattern, line))]

    def wait_news(self, timeout: float) -> None:
        """Wait for a line, any line, for up to `timeout` seconds."""
        with self._news:
            self._news.wait(timeout)

    def wait_line(self, pattern: str, count: int = 1, timeout: float = TIMEOUT) -> str:
        """Wait for `count` lines that match; returns the last of them.

        Raises:
            AssertionError: The worker ended, or the time did, before they came.
        """
        end = time.monotonic() + timeout
        seen = 0
        found: list[str] = []
        is_late = False
        with self._news:
            while True:
                found += [line for line in self.lines[seen:] if re.search(pattern, line)]
                seen = len(self._lines)
                if len(found) >= count:
                    return found[count - 1]
                if self._ended:
                    raise AssertionError(f"the worker ended before {pattern!r}")
                if is_late:
                    raise AssertionError(f"no line {pattern!r} in {timeout} s")
                # It is looked once more: the machine may have stood still.
                is_late = not self._news.wait(max(0.0, end - time.monotonic()))

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal, to the process or to its whole group; the clock starts now."""
        self.stopped_at = self.stopped_at or time.monotonic()
        (os.killpg if group else os.kill)(self.pid, number)

    def term(self, *, group: bool = False) -> None:
        """Send SIGTERM."""
        self.signal(signal.SIGTERM, group=group)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait for its end; returns the exit status (negative: the signal that ended it)."""
        status: int = self.process.wait(timeout)
        self.took = time.monotonic() - self.stopped_at
        self._reader.join(TIMEOUT)
        return status

    def wait_all(self) -> None:
        """Wait for the end of all who write where it does: it and its children."""
        self._reader.join(TIMEOUT)
        assert not self._reader.is_alive(), "somebody still writes where it did"

    def kill(self) -> None:
        super().kill()
        self._reader.join(5)


class Worker(WatchedProcess):
    """A `celery worker` (or another celery command) in a process group of its own.

    Args:
        app: Module with the app, importable from the root of the repository.
        pool: The pool; `spawn` is prefork with the start method of that name.
        concurrency: Of the pool; solo has none.
        env: Added to the environment. The apps in `tests/apps` read BROKER_URL and RESULT_URL.
        args: Added to the command line.
        alone: Takes no notice of other workers: without mingle and gossip.
    """

    def __init__(
        self,
        app: str,
        *,
        pool: str = "prefork",
        concurrency: int = 2,
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        log_level: str = "INFO",
        hostname: str = "",
        alone: bool = True,
    ) -> None:
        self.pool = pool
        environ = environment(env or {})
        if pool == "spawn":
            environ["POOL_START_METHOD"] = "spawn"
        argv = [*CELERY, "-A", app, "worker", "-l", log_level]
        argv += ["-P", "prefork" if pool == "spawn" else pool, "-c", str(concurrency)]
        if alone:
            argv += ["--without-mingle", "--without-gossip"]
        argv += ["-n", hostname or f"w{os.getpid()}-{id(self)}@test", *args]
        super().__init__(argv, env=environ)

    def ready(self) -> Worker:
        """Wait until it consumes."""
        self.wait_line(r"ready\.$")
        return self
