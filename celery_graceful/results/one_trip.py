"""Celery's result backend for Redis, which stores a state in one round trip instead of two.

Before it stores a state, Celery reads what is stored: a success is never written over, as it may be
that of another delivery. Most often there is nothing, or what this process has stored itself, such
as ``STARTED``. So that is taken for granted, and a script stores the new state only if it is true,
and tells who waits for it. If it is not, Celery does it in its own way.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from functools import cached_property
from typing import Any, NamedTuple

from celery.backends import redis
from celery.states import READY_STATES

from celery_graceful.store.client import is_answer, is_forbidden
from celery_graceful.system.describe import describe

__all__ = ["RedisBackend"]

logger = logging.getLogger(__name__)

#: Tasks of which is remembered what this process has stored of them while they run.
MOST = 1000

#: Publishes first: who may not do that shall not have stored it, or nobody would hear of it.
#: What is there may also be the new state: where an answer was lost, it is stored again.
_STORE = """
local now = redis.call('GET', KEYS[1])
if now and now ~= ARGV[1] and now ~= ARGV[3] then
    return 0
end
redis.call('PUBLISH', KEYS[1], ARGV[1])
if ARGV[2] == '' then
    redis.call('SET', KEYS[1], ARGV[1])
else
    redis.call('SETEX', KEYS[1], ARGV[2], ARGV[1])
end
return 1
"""


class _Guess(NamedTuple):
    """What is stored under a key before a state of a task is; nothing at all, if ``None``."""

    key: Any
    value: Any


class _Wrong(Exception):
    """Something else is stored, or the server runs no scripts."""


_guess: ContextVar[_Guess | None] = ContextVar("graceful_stored_before", default=None)


class RedisBackend(redis.RedisBackend):
    """Has the name of Celery's own: to whoever compares where results are, it is the same."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stored: dict[Any, Any] = {}
        self._takes_scripts = True

    def __reduce__(self, *args: Any, **kwargs: Any) -> Any:
        reduced: Any = super().__reduce__(*args, **kwargs)
        return reduced[0], (redis.RedisBackend, *reduced[1][1:])

    @cached_property
    def _script(self) -> Any:
        return self.client.register_script(_STORE)

    def _store_result(self, task_id: Any, *args: Any, **kwargs: Any) -> Any:
        if self._takes_scripts:
            key = self.get_key_for_task(task_id)
            token = _guess.set(_Guess(key, self._stored.pop(key, None)))
            try:
                return super()._store_result(task_id, *args, **kwargs)
            except _Wrong:
                pass
            finally:
                _guess.reset(token)
        return super()._store_result(task_id, *args, **kwargs)

    def get(self, key: Any) -> Any:
        guess = _guess.get()
        return super().get(key) if guess is None or guess.key != key else guess.value

    def _set(self, key: Any, value: Any, expires: Any = None) -> None:
        guess = _guess.get()
        if guess is None or guess.key != key:
            super()._set(key, value, *([] if expires is None else [expires]))
            return
        expires = self.expires if expires is None else expires
        before = "" if guess.value is None else guess.value
        try:
            stored = self._script([key], [value, expires or "", before])
        except Exception as exc:
            if not is_answer(exc):
                raise
            if is_forbidden(exc) or "unknown command" in str(exc):
                self._takes_scripts = False
                logger.info("Results are stored in two steps: Redis said %s", describe(exc))
            raise _Wrong from exc  # Celery hears whatever keeps its own way from it
        if not stored:
            raise _Wrong

    def _set_with_state(self, key: Any, value: Any, state: Any) -> Any:
        done = super()._set_with_state(key, value, state)
        guess = _guess.get()
        if guess is not None and guess.key == key and state not in READY_STATES:
            if len(self._stored) >= MOST:
                self._stored.clear()
            self._stored[key] = value
        return done
