"""A real worker for a test: a process that is watched, signalled and waited for."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery_graceful.system.guarded_process import Process
from celery_graceful.testing.leftovers import Broker
from celery_graceful.testing.worker_main import SETTINGS

__all__ = ["LIMIT", "GracefulWorker", "NotInTime", "StopReport"]

#: Seconds that is waited for something, if the test does not say.
LIMIT = 60.0

#: Lines of its log that a failure shows.
SHOWN = 25

#: Celery patches for gevent and eventlet before anything else is imported. ``-m`` would have
#: imported the package by then, and with it Celery's app, the threads and the sockets.
_PROGRAM = """
import sys
from celery import maybe_patch_concurrency
maybe_patch_concurrency(["celery", *sys.argv[1:]])
from celery_graceful.testing.worker_main import main
main(sys.argv[1:])
"""

_STOPPED = re.compile(
    r"Stopped: (?P<finished>\d+) finished, (?P<interrupted>\d+) interrupted, "
    r"(?P<given_up>\d+) given up, (?P<released>\d+) released; took (?P<seconds>[\d.]+) s"
)


class NotInTime(AssertionError):
    """What a test waited for did not come. It says what that was, and what the worker wrote."""


@dataclass(frozen=True)
class StopReport:
    """What became of all that a worker held when it was told to stop.

    Attributes:
        finished: Tasks that came to their end meanwhile.
        interrupted: Tasks that stopped at a safe point, and are back in their queue.
        given_up: Tasks that ran at the hard deadline, and are back in their queue.
        released: Messages that had not been started, and went back.
        seconds: That the stop took.
    """

    finished: int
    interrupted: int
    given_up: int
    released: int
    seconds: float


class GracefulWorker:
    """A worker that consumes. The fixture ``graceful_worker`` starts it, and ends it with the test.

    Args:
        app: Where it finds its app, as ``celery -A`` has it.
        broker: Where its messages are.
        pool: The pool.
        concurrency: Of the pool.
        settings: Of Celery and ours, in place of the app's own.
        env: Added to the environment.
        args: Added to the command line.
        name: Of its node.
    """

    def __init__(
        self,
        app: str,
        broker: Broker,
        *,
        pool: str = "prefork",
        concurrency: int = 1,
        settings: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        name: str = "w1@test",
    ) -> None:
        self.name = name
        self._broker = broker
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._status: int | None = None
        self._frozen = False
        argv = [sys.executable, "-c", _PROGRAM, app, "worker"]
        argv += ["-l", "INFO", "-P", pool, "-c", str(concurrency), "-n", name]
        argv += ["--without-mingle", "--without-gossip", *args]
        environ = {
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": ":".join(filter(None, [str(Path.cwd()), *sys.path])),
            SETTINGS: json.dumps(dict(settings or {})),
            **(env or {}),
        }
        self._process = Process(argv, environ, output=-1)
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __repr__(self) -> str:
        return f"<worker {self.name}, pid {self.pid}>"

    def _read(self) -> None:
        with self._process.output as output:
            for line in output:
                with self._news:
                    self._lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._status = self._process.wait(None)
            self._news.notify_all()

    # -- what it says ----------------------------------------------------------------------

    @property
    def lines(self) -> list[str]:
        """All that it has written so far."""
        with self._news:
            return list(self._lines)

    @property
    def running(self) -> bool:
        """Whether its process is there; a frozen one is."""
        return self._process.wait(0) is None

    @property
    def report(self) -> StopReport | None:
        """What its last line says of a stop; ``None`` before, and of one that was killed."""
        found = next(filter(None, map(_STOPPED.search, reversed(self.lines))), None)
        if found is None:
            return None
        counts = {key: int(text) for key, text in found.groupdict().items() if key != "seconds"}
        return StopReport(**counts, seconds=float(found["seconds"]))

    # -- waiting ---------------------------------------------------------------------------

    def wait_for(
        self, what: str | Callable[[], object], *, count: int = 1, timeout: float = LIMIT
    ) -> Any:
        """Wait for a line of its log, or until a function returns something true.

        Args:
            what: A regular expression that has to match somewhere in a line; or a function,
                which is called again and again, also when the worker has ended.
            count: How many lines have to match.
            timeout: Seconds.

        Returns:
            The (last) line, or what the function has returned.

        Raises:
            NotInTime: It did not come in that time, or the worker ended before.
        """
        end = time.monotonic() + timeout
        if callable(what):
            while not (found := what()):
                if time.monotonic() > end:
                    raise self._late(f"{_named(what)} to return something true", timeout)
                time.sleep(0.02)
            return found
        wanted = f"the line {what!r}" + (f", {count} times" if count > 1 else "")
        with self._news:
            while True:
                found_lines = [line for line in self._lines if re.search(what, line)]
                if len(found_lines) >= count:
                    return found_lines[count - 1]
                if self._status is not None:
                    raise self._late(wanted, None)
                left = end - time.monotonic()
                if left <= 0:
                    raise self._late(wanted, timeout)
                self._news.wait(left)

    def wait(self, timeout: float = LIMIT) -> int:
        """Wait for its end; returns its exit status, below zero the signal that ended it.

        Args:
            timeout: Seconds.

        Raises:
            NotInTime: It still runs.
        """
        status = self._process.wait(timeout)
        if status is None:
            raise self._late("its end", timeout)
        self._reader.join(timeout)
        return status

    def _late(self, what: str, timeout: float | None) -> NotInTime:
        how = f"not in {timeout:g} s" if timeout is not None else f"ended with {self._status}"
        with self._news:
            last = "\n".join(f"    {line}" for line in self._lines[-SHOWN:]) or "    nothing"
        frozen = ", which is frozen" if self._frozen else ""
        return NotInTime(f"waited for {what} of {self!r}{frozen}: {how}; it wrote\n{last}")

    # -- what happens to it ----------------------------------------------------------------

    def term(self) -> None:
        """Tell it to stop (SIGTERM), as a deploy does, and do not wait."""
        self.thaw()
        self._process.signal(signal.SIGTERM)

    def stop(self, timeout: float = LIMIT) -> StopReport:
        """Tell it to stop, and wait for its end; returns what became of what it held.

        Args:
            timeout: Seconds.

        Raises:
            NotInTime: It still runs, or says nothing of the stop.
        """
        self.term()
        self.wait(timeout)
        if self.report is None:
            raise self._late("its report", None)
        return self.report

    def kill(self) -> None:
        """``kill -9``, of its pool's children as well.

        Its lease ends with it, where the broker is a Redis: others take its tasks over at once,
        as they would in 10 seconds.
        """
        self._process.kill()
        self._reader.join(LIMIT)
        self._broker.end_lease(self.name)

    def freeze(self) -> None:
        """Stop it in the middle of whatever it does (SIGSTOP), as a virtual machine that hangs."""
        self._frozen = True
        self._process.signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on after ``freeze``."""
        if self._frozen:
            self._frozen = False
            self._process.signal_all(signal.SIGCONT)

    def close(self) -> None:
        """End it at once, if it runs."""
        self._process.kill()
        self._reader.join(LIMIT)


def _named(what: Callable[[], object]) -> str:
    return getattr(what, "__qualname__", None) or repr(what)
