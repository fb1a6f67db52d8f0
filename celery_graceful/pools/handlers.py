"""The signal handlers of a process whose main thread runs tasks, which a task may take away.

An asyncio loop with a signal handler of its own, in its default where it has ended: no handler and
no ``signal.set_wakeup_fd``. Other libraries set one for SIGTERM and forget it. The process would
then die of the next SIGTERM, with the task that it runs.
"""

from __future__ import annotations

import signal
from importlib import import_module
from typing import Any

__all__ = ["Handlers"]

#: That of ``signal`` makes enums of what it gets, and takes some 50 times as long.
getsignal = import_module("_signal").getsignal

_NUMBERS = tuple(
    int(getattr(signal, name))
    for name in ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGURG", "SIGUSR1", "SIGUSR2")
)


class Handlers:
    """Those of now.

    Args:
        wakeup: Signals are also written to a file, as ``signal.set_wakeup_fd`` does.
    """

    def __init__(self, *, wakeup: bool) -> None:
        now = {number: getsignal(number) for number in _NUMBERS}
        # Others are free for tasks; of what was not set from Python nothing is known.
        kept: dict[int, Any] = {
            number: handler
            for number, handler in now.items()
            if handler not in (None, signal.SIG_DFL)
        }
        self._numbers = tuple(kept)
        self._handlers = list(kept.values())
        self._wakeup_fd = -1
        if wakeup:
            self._wakeup_fd = signal.set_wakeup_fd(-1)  # there is no other way to ask
            self._hear()

    def put_back(self) -> None:
        """What a task has changed. In the main thread."""
        if list(map(getsignal, self._numbers)) != self._handlers:
            for number, handler in zip(self._numbers, self._handlers, strict=True):
                if getsignal(number) != handler:
                    signal.signal(number, handler)
        if self._wakeup_fd >= 0:
            self._hear()

    def _hear(self) -> None:
        try:
            signal.set_wakeup_fd(self._wakeup_fd, warn_on_full_buffer=False)
        except (OSError, ValueError):  # a task has closed all files
            self._wakeup_fd = -1
