"""SIGHUP: the worker drains as for any stop, and then the same command starts anew.

Celery registers the new start with ``atexit`` when the signal arrives; so a SIGTERM that comes
later does not stop that worker, it only makes it start again. Here it is the last thing of all,
and whoever asks for a stop meanwhile gets a stop.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from celery_graceful.system import native

__all__ = ["Restart"]

#: What ends the process from here on, as at any other start: until there are new handlers.
_STOPS = ("SIGTERM", "SIGINT", "SIGQUIT")

#: In the environment of a process that was started so.
_STARTED_ANEW = "_GRACEFUL_STARTED_ANEW"

#: Options by which a worker that root starts becomes somebody else, and where Celery looks for
#: them besides. It fails if it is told so and is not root any more.
_BECOMES = {"--uid": "CELERY_WORKER_UID", "--gid": "CELERY_WORKER_GID"}


class Restart:
    """How this process was started, so that it can be again. Made before the worker starts."""

    def __init__(self) -> None:
        # A pool that spawns its children tells them things by the environment.
        self._environ = {**os.environ, _STARTED_ANEW: "1"}
        if os.environ.pop(_STARTED_ANEW, None):
            for name in _BECOMES.values():
                os.environ.pop(name, None)  # read by now, and not for what tasks start
            _reap()
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self.asked_for = False

    def ask(self, asked_for: bool) -> None:
        """Whether the stop that was asked for is a new start. Safe in a signal handler."""
        self.asked_for = asked_for

    def execute(self) -> None:
        """Replace this process. Returns only if it has been told to stop instead.

        Raises:
            OSError: The program cannot be started.
        """
        _close_at_exec()
        if native.in_main_thread():
            for name in _STOPS:
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            # One that is on its way to start anew need not be told to.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        if self.asked_for:
            # As it was started, options of the interpreter included: `python -m celery` is not
            # the same as running the file.
            args, environ = sys.orig_argv[1:], self._environ
            if os.geteuid():
                # To Celery a 0 is nobody to become, and stands above the settings `worker_uid`
                # and `worker_gid`.
                args, environ = _as_it_is(args), environ | dict.fromkeys(_BECOMES.values(), "0")
            os.execve(sys.executable, [sys.executable, *args], environ)


def _as_it_is(args: Sequence[str]) -> list[str]:
    """A command line without what changes the user. Before `worker` it is none of Celery's."""
    kept: list[str] = []
    words, of_worker = iter(args), False
    for word in words:
        name, value_is_in_it, _ = word.partition("=")
        if not of_worker or name not in _BECOMES:
            kept.append(word)
        elif not value_is_in_it:
            next(words, None)
        of_worker = of_worker or word == "worker"
    return kept


def _reap() -> None:
    """What ended with the program before this one is a child of this process, and a zombie."""
    wait = native.original("os", "waitpid")
    try:
        while wait(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass


def _close_at_exec() -> None:
    """Not now: threads still use them, and would say that they cannot."""
    for name in os.listdir("/dev/fd"):
        if int(name) > 2:
            try:
                os.set_inheritable(int(name), False)
            except OSError:
                pass  # that of the list itself
