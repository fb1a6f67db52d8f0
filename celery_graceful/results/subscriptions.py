"""Which results a process waits for: none in vain, and one subscription at a time.

Redis tells of a result once, to who listens just then. Where a connection was lost, redis-py makes
it anew by itself, or Celery does, and looks what is stored before it listens again. What is told in
between nobody hears: who waits would wait for ever. So who waits looks now and then as well.

Before Celery 5.7: a result that nobody waits for any more is unsubscribed when it is finalized.
Garbage is collected anywhere: also while its thread subscribes, with the lock of redis-py's
connection pool held, which it would wait for then, for ever
(https://github.com/celery/celery/issues/10477); and in another thread than that whose connection
this is, so that two write to it at a time. Since Celery 5.7 that is left to who has the connection;
here it is before.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery.backends import redis
from celery.states import READY_STATES

from celery_graceful.store.answers import is_of_redis
from celery_graceful.store.client import make_client
from celery_graceful.store.connections import backend_pool

__all__ = ["ResultConsumer"]

#: Seconds from one look to the next, and for an answer: who waits has a limit of his own. And how
#: many results are asked for at once.
LOOK, PATIENCE, AT_ONCE = 3.0, 1.0, 1000


class LooksAgain(redis.ResultConsumer):
    """Looks now and then what is stored of the results that somebody waits for."""

    backend: Any
    _pending_results: Any
    _looked = 0.0

    def drain_events(self, timeout: float | None = None) -> Any:
        now = time.monotonic()
        if not self._looked:
            self._looked = now  # who begins to wait has looked
        elif now >= self._looked + LOOK:
            self._looked = now
            self._look_again()
        return super().drain_events(timeout)

    def _look_again(self) -> None:
        try:
            keys = [self._get_key_for_task(one) for each in self._pending_results for one in each]
        except RuntimeError:  # another thread begins to wait
            return
        for meta in self._read(keys):
            if meta["status"] in READY_STATES:
                self.on_state_change(meta, None)

    def _read(self, keys: list[Any]) -> list[Any]:
        found: list[Any] = []
        if keys:
            pool = backend_pool(self.backend, PATIENCE)
            try:
                client = make_client(pool, PATIENCE)
                for start in range(0, len(keys), AT_ONCE):
                    found += client.mget(keys[start : start + AT_ONCE])
            except Exception as exc:
                if not is_of_redis(exc):
                    raise
            finally:
                pool.disconnect()
        return [self._decode_result(one) for one in found if one]


class OneAtATime(LooksAgain):
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

#: Since Celery 5.7 that does so itself.
ResultConsumer: type[redis.ResultConsumer] = LooksAgain if _ITSELF else OneAtATime
