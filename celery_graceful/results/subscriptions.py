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

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery.backends import redis
from celery.states import READY_STATES

from celery_graceful.store.client import make_client
from celery_graceful.store.connections import backend_pool, disconnect, has_celerys_client
from celery_graceful.system.describe import describe

__all__ = ["ResultConsumer"]

logger = logging.getLogger(__name__)

#: Seconds from one look to the next, and for an answer: who waits has a limit of his own. And how
#: many results are asked for at once.
LOOK, PATIENCE, AT_ONCE = 3.0, 1.0, 1000

#: Seconds without a question after which somebody begins to wait: who waits asks each second.
IDLE = 2.5


class LooksAgain(redis.ResultConsumer):
    """Looks now and then what is stored of the results that somebody waits for."""

    subscribed_to: set[Any]
    _pending_results: Any
    _drained = _looked = 0.0

    def drain_events(self, timeout: float | None = None) -> Any:
        now = time.monotonic()
        if now >= self._drained + IDLE:
            self._looked = now  # who begins to wait has looked
        elif now >= self._looked + LOOK:
            self._looked = now
            try:
                self._look_again()
            except Exception as exc:  # of the results of others, too
                logger.debug("Results are not looked for: %s", describe(exc))
        self._drained = time.monotonic()
        return super().drain_events(timeout)

    def on_state_change(self, meta: Any, message: Any) -> Any:
        # What a look has found comes by the subscription as well: it would be kept for who asks
        # later, as if nobody had waited for it.
        is_late = message is not None and meta["status"] in READY_STATES
        if not is_late or self._get_key_for_task(meta["task_id"]) in self.subscribed_to:
            super().on_state_change(meta, message)

    def _look_again(self) -> None:
        if not has_celerys_client(self.backend):
            return
        waited_for = [one for each in self._pending_results for one in list(each) if one]
        for start in range(0, len(waited_for), AT_ONCE):
            some = waited_for[start : start + AT_ONCE]
            found = self._read([self._get_key_for_task(one) for one in some])
            for stored in filter(None, found):
                self._find(stored)

    def _read(self, keys: list[Any]) -> list[Any]:
        pool = backend_pool(self.backend, PATIENCE)
        try:
            return list(make_client(pool, PATIENCE).mget(keys))
        finally:
            disconnect(pool)

    def _find(self, stored: Any) -> None:
        try:
            meta = self._decode_result(stored)
        except Exception as exc:  # who waits for that one hears of it, as ever
            logger.debug("A result cannot be read: %s", describe(exc))
            return
        if meta["status"] in READY_STATES:
            with self._locked():
                if any(meta["task_id"] in each for each in self._pending_results):
                    self.on_state_change(meta, None)


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
        with self._locked():
            return super().consume_from(task_id)

    def _reconnect_pubsub(self) -> Any:
        with self._locked():
            return super()._reconnect_pubsub()

    def cancel_for(self, task_id: Any) -> None:
        key = self._get_key_for_task(task_id)
        if key in self.subscribed_to:
            self.subscribed_to.discard(key)
            self._unwanted.append(key)
            self._unsubscribe()

    @contextmanager
    def _locked(self) -> Iterator[None]:
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
