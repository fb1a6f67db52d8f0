"""Deletes the checkpoints of tasks that have ended for good; the main process's side.

After the message was acknowledged, never before: a worker that dies in between leaves a
checkpoint that shows the work as done, and not a message whose work starts over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from celery.utils.log import get_logger

from celery_graceful.checkpoints.checkpoint import key_of
from celery_graceful.store.app_stores import find_store
from celery_graceful.store.store import StoreAway

__all__ = ["Discard"]

logger = get_logger(__name__)

#: Checkpoints deleted in one step.
BATCH = 100

#: Seconds that an acknowledgement gets on its way through the worker's loop, where nobody says
#: when it has arrived; those between looks where somebody does, and after which it has not.
ON_ITS_WAY, LOOK_AGAIN, PATIENCE = 0.05, 0.02, 10.0


class _Ended(NamedTuple):
    """A task that has ended: its key, the delivery that ended it, and when that began.

    ``None``: none came before it, and only what is its own is deleted.
    """

    key: str
    token: str
    began: float | None
    #: When it was said to have ended.
    at: float
    is_acknowledged: Callable[[], bool]


class Discard:
    """Deletes in a thread of its own, so that the loop of the worker never waits.

    Args:
        app: The Celery app.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self._lock = threading.Lock()
        self._waiting: list[_Ended] = []
        self._hurry = False
        # Not by Thread.join: eventlet's raises when its time is up, on Python 3.13.
        self._idle = threading.Event()
        self._idle.set()

    def __call__(
        self,
        name: str,
        task_id: str,
        token: str,
        began: float | None,
        is_acknowledged: Callable[[], bool] = lambda: True,
    ) -> None:
        """Delete the checkpoint of a task soon.

        Args:
            name: Of the task.
            task_id: Of the task.
            token: Of the delivery that ended it.
            began: When that delivery began, on the monotonic clock: what those before it have
                left is deleted as well. ``None``: there were none.
            is_acknowledged: Whether its message is done with; asked until it is.
        """
        if find_store(self.app) is None:
            return
        with self._lock:
            at = time.monotonic()
            ended = _Ended(key_of(name, task_id), token, began, at, is_acknowledged)
            self._waiting.append(ended)
            if self._idle.is_set():
                self._idle.clear()
                threading.Thread(target=self._delete, name="graceful-discard", daemon=True).start()

    def flush(self, timeout: float) -> None:
        """Wait for what is being deleted, for up to ``timeout`` seconds; the worker stops."""
        self._hurry = True
        self._idle.wait(timeout)

    def _delete(self) -> None:
        store = find_store(self.app)
        assert store is not None
        while True:
            with self._lock:
                if not self._waiting:
                    self._idle.set()
                    return
            batch = self._take()
            if not batch:
                time.sleep(LOOK_AGAIN)
                continue
            now = time.monotonic()
            ages = ("" if e.began is None else int((now - e.began) * 1e6) for e in batch)
            args = [arg for e, age in zip(batch, ages, strict=True) for arg in (e.token, age)]
            try:
                store.run("forget", [ended.key for ended in batch], args)
            except StoreAway:
                # They expire. Keeping them for later would keep ever more of them.
                logger.debug("%d checkpoints of ended tasks are left to expire", len(batch))

    def _take(self) -> list[_Ended]:
        """Those whose message is done with. What is not, after some time, is left to expire."""
        now = time.monotonic()
        with self._lock:
            first, rest = self._waiting[:BATCH], self._waiting[BATCH:]
            ready, later = [], []
            for ended in first:
                has_arrived = self._hurry or now >= ended.at + ON_ITS_WAY
                if has_arrived and ended.is_acknowledged():
                    ready.append(ended)
                elif now < ended.at + PATIENCE:
                    later.append(ended)
            self._waiting = rest + later
        return ready
