"""Celery's result backend for Redis, which stores a state in one round trip instead of two.

Before it stores a state, Celery reads what is stored: a success is never written over, as it may be
that of another delivery. Most often there is nothing, or what this process has stored itself, such
as ``STARTED``. So that is taken for granted, and a script stores the new state only if it is true,
and tells who waits for it. If it is not, Celery does it in its own way.

States that several threads or greenlets have to store at a time go to Redis together. What is
stored is Celery's, to the byte; only how it is made costs less.
"""

from __future__ import annotations

import hashlib
import logging
import os
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any, NamedTuple

from celery import Celery
from celery.backends import redis
from celery.states import PENDING, READY_STATES, RETRY
from kombu.exceptions import EncodeError
from kombu.serialization import registry
from kombu.utils import json

from celery_graceful.results.outlasting import Outlasting
from celery_graceful.results.subscriptions import ResultConsumer
from celery_graceful.store.answers import is_answer, is_forbidden, is_unknown_script
from celery_graceful.store.client import is_plain
from celery_graceful.store.together import Together, TornAway, ask
from celery_graceful.system.describe import describe
from celery_graceful.system.per_app import PerApp

__all__ = ["RedisBackend"]

logger = logging.getLogger(__name__)

#: Tasks of which each backend remembers what it has stored of them while they run, and the bytes of
#: one: where it is larger, Redis is asked.
MOST, LARGE = 250, 4096

#: What is there may also be the new state: where an answer was lost, it is stored again. Who may
#: not publish it shall not have stored it either, or nobody would hear of it.
_STORE = b"""
local key, new = KEYS[1], ARGV[1]
local now = redis.call('GET', key)
if now and now ~= new and now ~= ARGV[3] then
    return 0
end
if ARGV[2] == '' then
    redis.call('SET', key, new)
else
    redis.call('SETEX', key, ARGV[2], new)
end
local told = redis.pcall('PUBLISH', key, new)
if type(told) == 'table' and told.err then
    if now then
        redis.call('SET', key, now, 'KEEPTTL')
    else
        redis.call('DEL', key)
    end
    return told
end
return 1
"""


def _words(*words: bytes) -> bytes:
    """As commands are sent to Redis, without their number."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


_BY_NAME = b"*7\r\n" + _words(b"EVALSHA", hashlib.sha1(_STORE).hexdigest().encode(), b"1")
_BY_TEXT = b"*7\r\n" + _words(b"EVAL", _STORE, b"1")

_json = json.JSONEncoder()


class _Guess(NamedTuple):
    """What is stored under a key before a state of a task is; nothing at all, if it is empty."""

    key: Any
    value: Any


class _Wrong(Exception):
    """Something else is stored, or the server runs no scripts."""


_guess: ContextVar[_Guess | None] = ContextVar("graceful_stored_before", default=None)


#: Celery makes a backend for each thread; in the process that has made it they ask in one place.
_asking: PerApp[dict[tuple[int, str], Together]] = PerApp()


#: What connections say of their client. To find it, redis-py reads the metadata of its package.
_driver_info: dict[str, Any] = {}


class RedisBackend(Outlasting, redis.RedisBackend):
    """Has the name of Celery's own: to whoever compares where results are, it is the same."""

    ResultConsumer = ResultConsumer
    connparams: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stored: dict[Any, Any] = {}
        self._takes_scripts = True
        self._asking: dict[int, Together] = {}

    def _add_driver_info(self) -> None:
        """As Celery does since 5.7, for each backend: there is one for each thread or greenlet."""
        if not _driver_info:
            own, self.connparams = self.connparams, {}
            super()._add_driver_info()
            _driver_info.update(self.connparams)
            self.connparams = own
        self.connparams.update(_driver_info)

    def __reduce__(self, *args: Any, **kwargs: Any) -> Any:
        reduced: Any = super().__reduce__(*args, **kwargs)
        return reduced[0], (redis.RedisBackend, *reduced[1][1:])

    def _store_result(self, task_id: Any, *args: Any, **kwargs: Any) -> Any:
        if self._takes_scripts:
            key = self.get_key_for_task(task_id)
            token = _guess.set(_Guess(key, self._stored.pop(key, b"")))
            try:
                return super()._store_result(task_id, *args, **kwargs)
            except _Wrong:
                pass
            finally:
                _guess.reset(token)
        return super()._store_result(task_id, *args, **kwargs)

    def _get_task_meta_for(self, task_id: Any) -> Any:
        guess = _guess.get()
        if guess is None or guess.key != self.get_key_for_task(task_id):
            return super()._get_task_meta_for(task_id)
        return {"status": PENDING, "result": None}

    def ensure(self, fun: Any, args: Any, **policy: Any) -> Any:
        """As Celery does: what it needs for more than one attempt is made when the first failed."""
        if _guess.get() is None:
            return super().ensure(fun, args, **policy)
        try:
            return fun(*args)
        except self.connection_errors as exc:
            failed = [exc]

        def again(*args: Any) -> Any:
            if failed:
                raise failed.pop()
            return fun(*args)

        return super().ensure(again, args, **policy)

    def _set(self, key: Any, value: Any, expires: Any = None) -> None:
        guess = _guess.get()
        if guess is None or guess.key != key:
            super()._set(key, value, *([] if expires is None else [expires]))
            return
        expires = self.expires if expires is None else expires
        try:
            stored = self._ask(key, value, expires, guess.value)
        except TornAway as exc:
            raise _Wrong from exc
        except Exception as exc:
            if not is_answer(exc):
                raise
            if is_forbidden(exc) or "unknown command" in str(exc):
                self._takes_scripts = False
                logger.info("Results are stored in two steps: Redis said %s", describe(exc))
            raise _Wrong from exc  # Celery hears whatever keeps its own way from it
        if not stored:
            raise _Wrong

    def _ask(self, key: Any, value: Any, expires: Any, before: Any) -> Any:
        words = map(self._find_asking().encode, (key, value, expires or b"", before))
        arguments = _words(*words)
        try:
            return ask(self._find_asking, _BY_NAME + arguments)
        except Exception as exc:
            if not is_unknown_script(exc):
                raise
            return ask(self._find_asking, _BY_TEXT + arguments)

    def _find_asking(self) -> Together:
        together = self._asking.get(os.getpid())
        if together is None or together.stuck:
            together = self._begin_asking()
        if not together.is_of_here():
            raise _Wrong
        return together

    def _begin_asking(self) -> Together:
        if not is_plain(self.client):
            self._takes_scripts = False
            raise _Wrong
        pid, pool = os.getpid(), self._get_pool(**self.connparams)
        places = _asking.setdefault(self.app, {})
        # Celery makes each backend a provider of passwords of its own.
        provider = type(self.connparams.get("credential_provider"))
        place = pid, repr({**self.connparams, "credential_provider": provider})
        for other in list(places):
            if other[0] != pid:
                places.pop(other, None)
        together = places.setdefault(place, Together(pool))
        while together.stuck:  # all who come from it go on to the same one
            together = places[place] = together.next(Together(pool))
        self._asking = {pid: together}
        return together

    def _get_result_meta(
        self,
        result: Any,
        state: Any,
        traceback: Any,
        request: Any,
        format_date: bool = True,
        encode: bool = False,
    ) -> Any:
        """As Celery makes it, if it is not extended."""
        app = self.app
        if not format_date or app.conf["result_extended"]:
            return super()._get_result_meta(
                result, state, traceback, request, format_date=format_date, encode=encode
            )
        meta = {
            "status": state,
            "result": result,
            "traceback": traceback,
            "children": self.current_task_children(request),
            "date_done": _now(app).isoformat() if state in self.READY_STATES else None,
        }
        if request:
            group, parent = getattr(request, "group", None), getattr(request, "parent_id", None)
            if group:
                meta["group_id"] = group
            if parent:
                meta["parent_id"] = parent
        return meta

    def _encode(self, data: Any) -> Any:
        if self.serializer == "json":
            codec = registry._encoders.get("json")
            if codec is not None and codec.encoder is json.dumps:
                try:
                    return codec.content_type, codec.content_encoding, _json.encode(data)
                except Exception as exc:
                    raise EncodeError(exc) from exc
        return super()._encode(data)

    def _set_with_state(self, key: Any, value: Any, state: Any) -> Any:
        done = super()._set_with_state(key, value, state)
        guess = _guess.get()
        # Of one that is tried again, somebody else may store the next state.
        is_ours = guess is not None and guess.key == key and state not in (*READY_STATES, RETRY)
        if is_ours and len(value) <= LARGE:
            if len(self._stored) >= MOST:
                self._stored.clear()
            self._stored[key] = value
        return done


def _now(app: Any) -> Any:
    """What ``app.now`` says, where that is Celery's."""
    if type(app).now is Celery.now:
        return datetime.now(timezone.utc).astimezone(app.timezone)
    return app.now()
