"""Doing something again and again, for as long as there is a reason to, beside all else."""

from __future__ import annotations

import threading
from collections.abc import Callable

from celery.utils.log import get_logger

from celery_graceful.system import native

__all__ = ["Repeating"]

logger = get_logger(__name__)


class Repeating:
    """A thread that there is only while it is needed; a greenlet where threads are.

    Args:
        do: What it does; whether that is to be done again.
        seconds: From one time to the next, and before the first.
        name: Of the thread.
    """

    def __init__(self, do: Callable[[], bool], seconds: float, name: str) -> None:
        self._do, self._seconds, self._name = do, seconds, name
        self._lock = native.Lock()
        self._bell = threading.Event()
        self._thread: threading.Thread | None = None
        self._runs = self._again = self._ended = False

    def begin(self) -> None:
        """There is something to do. From any thread.

        Raises:
            RuntimeError: No thread can be started; the interpreter ends, for one.
        """
        with self._lock:
            self._again = True
            begins = not (self._runs or self._ended)
            self._runs = self._runs or begins
        if begins:  # not under the lock: a greenlet lets others run meanwhile
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
            except BaseException:
                self._runs = False
                raise
            self._thread = thread  # which can be waited for now

    def end(self, seconds: float) -> None:
        """Do it a last time if there is something to do; wait for that for up to ``seconds``."""
        self._ended = True
        self._bell.set()
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _run(self) -> None:
        while True:
            self._bell.wait(self._seconds)
            with self._lock:
                self._again = False
            try:
                again = self._do()
            except Exception:
                logger.exception("In %s", self._name)
                again = True
            with self._lock:
                if self._ended or not (again or self._again):
                    self._runs = False
                    return
