"""Deletes the checkpoints of tasks that have ended for good; the main process's side.

After the message was acknowledged, never before: a worker that dies in between leaves a
checkpoint that shows the work as done, and not a message whose work starts over.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.checkpoints.checkpoint import key_of
from celery_graceful.store.store import StoreAway, find_store

__all__ = ["Discard"]

logger = get_logger(__name__)

#: Checkpoints deleted in one step.
BATCH = 100


class Discard:
    """Deletes in a thread of its own, so that the loop of the worker never waits.

    Args:
        app: The Celery app.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self._lock = threading.Lock()
        self._waiting: list[tuple[str, str, float]] = []
        # Not by Thread.join: eventlet's raises when its time is up, on Python 3.13.
        self._idle = threading.Event()
        self._idle.set()

    def __call__(self, name: str, task_id: str, token: str, began: float | None) -> None:
        """Delete the checkpoint of a task soon.

        Args:
            name: Of the task.
            task_id: Of the task.
            token: Of the delivery that ended it. Empty: delete it whoever wrote it.
            began: When that delivery began, on the monotonic clock.
        """
        if find_store(self.app) is None:
            return
        with self._lock:
            began = time.monotonic() if began is None else began
            self._waiting.append((key_of(name, task_id), token, began))
            if self._idle.is_set():
                self._idle.clear()
                threading.Thread(target=self._delete, name="graceful-forget", daemon=True).start()

    def flush(self, timeout: float) -> None:
        """Wait for what is being deleted, for up to ``timeout`` seconds."""
        self._idle.wait(timeout)

    def _delete(self) -> None:
        store = find_store(self.app)
        assert store is not None
        while True:
            with self._lock:
                batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                if not batch:
                    self._idle.set()
                    return
            now = time.monotonic()
            args = [arg for _, token, began in batch for arg in (token, int((now - began) * 1e6))]
            try:
                store.run("forget", [key for key, _, _ in batch], args)
            except StoreAway:
                # They expire. Keeping them for later would keep ever more of them.
                logger.debug("%d checkpoints of ended tasks are left to expire", len(batch))
