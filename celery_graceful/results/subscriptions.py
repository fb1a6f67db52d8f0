"""Which results a process waits for: one subscription at a time, before Celery 5.7.

A result that nobody waits for any more is unsubscribed when it is finalized. Garbage is collected
anywhere: also while its thread subscribes, with the lock of redis-py's connection pool held, which
it would wait for then, for ever (https://github.com/celery/celery/issues/10477); and in another
thread than that whose connection this is, so that two write to it at a time. Since Celery 5.7 that
is left to who has the connection; here it is before.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery.backends import redis

__all__ = ["ResultConsumer"]


class OneAtATime(redis.ResultConsumer):
    """Who subscribes unsubscribes, afterwards, what others have left to it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begin()

    def _begin(self) -> None:
        self._turn = threading.RLock()
        #: How many operations its thread is in the middle of.
        self._depth = 0
        self._unwanted: deque[Any] = deque()

    def on_after_fork(self) -> None:
        self._begin()  # who had its turn is not here
        super().on_after_fork()

    def consume_from(self, task_id: Any) -> Any:
        with self._operation():
            return super().consume_from(task_id)

    def _reconnect_pubsub(self) -> Any:
        with self._operation():
            return super()._reconnect_pubsub()

    def cancel_for(self, task_id: Any) -> None:
        key = self._get_key_for_task(task_id)
        if key in self.subscribed_to:
            self.subscribed_to.discard(key)
            self._unwanted.append(key)
            self._unsubscribe()

    @contextmanager
    def _operation(self) -> Iterator[None]:
        try:
            with self._turn:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
        finally:
            self._unsubscribe()

    def _unsubscribe(self) -> None:
        # Again after the release: who came meanwhile has not waited.
        while self._unwanted and self._turn.acquire(blocking=False):
            try:
                if self._depth:  # in this very thread
                    return
                self._depth += 1
                try:
                    self._do_unsubscribe()
                finally:
                    self._depth -= 1
            finally:
                self._turn.release()

    def _do_unsubscribe(self) -> None:
        while self._unwanted:
            key, pubsub = self._unwanted.popleft(), self._pubsub
            connected = pubsub is not None and pubsub.connection is not None
            if connected and key not in self.subscribed_to:
                with self.reconnect_on_error():
                    pubsub.unsubscribe(key)


_ITSELF = hasattr(redis.ResultConsumer, "_flush_pending_unsubscribe")

#: Celery's own, where that does so itself.
ResultConsumer: type[redis.ResultConsumer] = redis.ResultConsumer if _ITSELF else OneAtATime
