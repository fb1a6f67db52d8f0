"""A helper process that ends a worker whose interpreter has stopped for good.

Where tasks run in the main process, a C call that never gives up the GIL stops every thread of
it, the watch over the drain included. A timer of the kernel would not help: to arm it at the
signal takes Python code, which does not run. But Python's signal handler in C still writes the
number of the signal to a pipe (``signal.set_wakeup_fd``). This process reads the other end; it
sends SIGKILL shortly before the platform would, and only if everything else has failed.

What it reads it passes on to the watch, which so learns of a signal also when the main thread
sits in a C call (Python's handlers in Python only run in that thread).

Run as a script: ``python -I -S watchdog.py <worker's pid> <seconds> <fd> <fd of the watch>``. It
imports nothing of this package, so that it stays small.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time

__all__ = ["Watchdog"]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

#: Written by the watch, which decides what other signals mean.
START_CLOCK = 0


class Watchdog:
    """The worker's end.

    Args:
        seconds: After the signal, when the worker is killed.
        watch_fd: Where the numbers of signals are passed on to.
    """

    def __init__(self, seconds: float, watch_fd: int) -> None:
        import subprocess

        read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__]
            + [str(arg) for arg in (os.getpid(), seconds, read_fd, watch_fd)],
            pass_fds=[read_fd, watch_fd],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a signal to the worker's group is not for it
        )
        os.close(read_fd)

    @property
    def fd(self) -> int:
        """Where the numbers of signals have to be written to."""
        return self._write_fd

    def end(self) -> None:
        """End it: this process has another life before it."""
        self._process.kill()
        self._process.wait()

    def start_clock(self) -> None:
        """The worker was asked to stop by something else than a signal."""
        try:
            os.write(self._write_fd, bytes([START_CLOCK]))
        except OSError:
            pass


def watch(worker: int, seconds: float, fd: int, watch_fd: int) -> None:
    """Wait for a stop signal, then for the worker's end, then end it."""
    deadline = None
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while os.getppid() == worker:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            _kill(worker)
            return
        # A second at a time: a process that the worker forked may keep the pipe open.
        if poller.poll(1000 if left is None else min(1000, left * 1000)):
            numbers = os.read(fd, 4096)
            if not numbers:
                return
            told = bytes(number for number in numbers if number in (*STOP_SIGNALS, signal.SIGHUP))
            if told:
                try:
                    os.write(watch_fd, told)
                except BrokenPipeError:  # it was quick: gone before it could be told
                    return
            if deadline is None and any(n in (*STOP_SIGNALS, START_CLOCK) for n in numbers):
                deadline = time.monotonic() + seconds


def _kill(worker: int) -> None:
    os.kill(worker, signal.SIGKILL)
    if worker == 1 and hasattr(resource, "prlimit"):
        # The first process of a container ignores what others in it send, SIGKILL too; not the
        # SIGKILL of the kernel for a process that has used more of the processor than it may.
        resource.prlimit(worker, resource.RLIMIT_CPU, (1, 1))


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
