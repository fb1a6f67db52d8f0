"""The thread that sends what a worker has to say of its claims, until Redis has heard it."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.store.store import StoreAway
from celery_graceful.system import native
from celery_graceful.system.log_thread import log

__all__ = ["Sending"]

logger = get_logger(__name__)

#: Seconds in which is gathered what is sent together; and what is urgent.
GATHER, GATHER_URGENT = 0.005, 0.001

#: Seconds until what could not be sent is tried again.
RETRY = 0.5


class Sending:
    """A thread that starts when there is something to send, and sleeps while there is nothing.

    Args:
        lock: Under which things to send are added, and looked for.
        send: Sends what there is, all of it at once if it is told so; raises what kept it from it.
        more: Whether there is still something to send; called under the lock.
        name: Of the thread.
        what: It does, for the log.
    """

    def __init__(
        self,
        lock: Any,
        send: Callable[[bool], None],
        more: Callable[[], object],
        *,
        name: str = "graceful-acks",
        what: str = "acknowledge",
    ) -> None:
        self._lock = lock
        self._name, self._what = name, what
        self._send, self._more = send, more
        self._bell, self._settled, self._gone = (native.Doorbell() for _ in range(3))
        #: Rung to cut the gathering short.
        self._enough = native.Doorbell()
        self._awake = self._hurry = self._started = self._ended = False
        self._is_urgent = False

    def awaken(self) -> bool:
        """There is something to send. Under the lock; whether ``wake`` has to follow, without."""
        asleep, self._awake = not self._awake, True
        return asleep

    def wake(self) -> None:
        """Go on. Not under the lock."""
        if not self._started:
            self._started = True
            native.start_thread(self._run, self._name)
        self._bell.ring()

    def rouse(self) -> None:
        """There is something to send, added before: go on if it sleeps. Not under the lock."""
        if self._awake:  # it looks again before it sleeps
            return
        with self._lock:
            asleep = self.awaken()
        if asleep:
            self.wake()

    def urge(self) -> None:
        """Gather for a moment only, what there is and what is added now. Not under the lock."""
        if not self._is_urgent:
            self._is_urgent = True
            self._enough.ring()

    def calm(self) -> None:
        """Nothing of that is left."""
        self._is_urgent = False

    def hurry(self) -> None:
        """Gather no more until all is sent. Under the lock; ``wait`` has to follow, without."""
        self._hurry = self._awake = True

    def wait(self, seconds: float) -> None:
        """Wait until all is sent, for up to ``seconds``."""
        self._settled.take()
        self._enough.ring()
        self.wake()
        self._settled.wait(seconds)

    def end(self, seconds: float) -> None:
        """End the thread; wait for that for up to ``seconds``."""
        self._ended = True
        if self._started:
            self._enough.ring()
            self._bell.ring()
            self._gone.wait(seconds)
        self._bell = self._settled = self._gone = self._enough = native.SILENT

    def _run(self) -> None:
        while not self._ended:
            if not self._hurry:
                if not self._awake:
                    self._bell.wait(None)
                if not self._is_urgent:
                    self._enough.wait(GATHER)
                if self._is_urgent and not self._hurry:
                    native.pause(GATHER_URGENT)
                    self._enough.take()  # what rang it is urgent, and sent now
            try:
                self._send(self._hurry)
            except Exception as exc:  # it must not end: nobody else sends
                if not isinstance(exc, StoreAway):
                    why = traceback.format_exc()
                    log(logger, logging.CRITICAL, f"Could not {self._what}: %s", why)
                self._bell.wait(RETRY)
                continue
            with self._lock:
                self._awake = False  # before it looks: who comes later finds it asleep
                if self._more():
                    self._awake = True
                else:
                    self._hurry = False
            if not self._awake:
                self._settled.ring()
        self._gone.ring()
