"""Results that nobody told of: who waits finds them."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.backends.base import DisabledBackend
from celery.backends.redis import RedisBackend, SentinelBackend
from celery.exceptions import TimeoutError
from celery.result import GroupResult

from celery_graceful import Graceful
from celery_graceful.results import subscriptions
from celery_graceful.results.subscriptions import LooksAgain
from celery_graceful.store.connections import has_celerys_client
from tests.conftest import RedisDB
from tests.servers import RedisServer
from tests.support.workers import wait_until

#: Seconds; many times what anything here takes.
LONG = 60.0


@pytest.fixture
def app(redis_db: RedisDB) -> Iterator[Celery]:
    app = Celery("results", broker=redis_db.url, backend=redis_db.url, set_as_current=False)
    Graceful(app)
    yield app
    app.close()


class Own(RedisBackend):
    """It knows by itself how its server is reached."""

    def _create_client(self, **params: Any) -> Any:
        raise NotImplementedError


class Waiting:
    """A thread that waits for the results of tasks, and listens for what is told of them."""

    def __init__(self, app: Celery, redis_db: RedisDB, ids: list[str], seconds: float = LONG):
        self.got: list[Any] = []
        self._app, self._ids, self._seconds = app, ids, seconds
        self._redis, self._keys = redis_db.client, [app.backend.get_key_for_task(i) for i in ids]
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()
        wait_until(lambda: self.listened() == len(ids), "it listens")

    def listened(self) -> int:
        return sum(number for _, number in self._redis.pubsub_numsub(*self._keys))

    def _wait(self) -> None:
        results = [self._app.AsyncResult(one) for one in self._ids]
        try:
            self.got.append(GroupResult("g", results, app=self._app).get(timeout=self._seconds))
        except Exception as exc:
            self.got.append(exc)

    def end(self) -> Any:
        self._thread.join(LONG)
        assert self.got
        return self.got[0]


def store(app: Celery, redis_db: RedisDB, task_id: str, result: Any, state: str) -> None:
    """As if who waits was told while its connection was lost."""
    meta = {"task_id": task_id, "status": state, "result": result, "traceback": None}
    redis_db.client.set(app.backend.get_key_for_task(task_id), app.backend.encode(meta))


def new_ids(number: int = 1) -> list[str]:
    return [uuid.uuid4().hex for _ in range(number)]


def looks(redis_db: RedisDB) -> int:
    return int(redis_db.client.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"])


def test_a_result(app: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "LOOK", 0.01)
    waiting = Waiting(app, redis_db, ids := new_ids())
    store(app, redis_db, ids[0], None, "STARTED")
    before = looks(redis_db)
    wait_until(lambda: looks(redis_db) > before + 1, "it has looked")
    assert not waiting.got
    store(app, redis_db, ids[0], 7, "SUCCESS")
    assert waiting.end() == [7]
    wait_until(lambda: not waiting.listened(), "nobody listens any more")


def test_many(app: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "AT_ONCE", 10)
    waiting = Waiting(app, redis_db, ids := new_ids(35))
    for number, one in enumerate(ids):
        store(app, redis_db, one, number, "SUCCESS")
    assert waiting.end() == list(range(35))


def test_one_that_cannot_be_read_is_nothing_to_those_who_wait_for_others(
    app: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery never forgets one that somebody failed to read."""
    monkeypatch.setattr(subscriptions, "LOOK", 0.01)
    waiting = Waiting(app, redis_db, ids := new_ids(2))
    key = app.backend.get_key_for_task(ids[0])
    before = looks(redis_db)
    wait_until(lambda: looks(redis_db) > before + 1, "it looks, and was told nothing at first")
    redis_db.client.set(key, '{"status": "SUCCESS", "result": [')
    before = looks(redis_db)
    wait_until(lambda: looks(redis_db) > before + 1, "it has looked again")
    assert not waiting.got
    for number, one in enumerate(ids):
        store(app, redis_db, one, number, "SUCCESS")
    assert waiting.end() == [0, 1]


def test_a_look_that_fails_is_nothing_to_who_waits(
    app: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parameters are taken by the client of a subclass only, for instance."""
    monkeypatch.setattr(subscriptions, "LOOK", 0.01)
    failed: list[object] = []

    def fails(*args: object) -> None:
        failed.append(args)
        raise TypeError("unexpected argument")

    monkeypatch.setattr(subscriptions, "backend_pool", fails)
    waiting = Waiting(app, redis_db, ids := new_ids())
    wait_until(lambda: len(failed) > 1, "it was tried to look")
    app.backend.store_result(ids[0], 7, "SUCCESS")
    assert waiting.end() == [7]


def test_what_is_told_after_it_was_found_is_not_kept(
    app: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result of that id that somebody asks for later would be that one."""
    told: list[Any] = []
    consumer: Any = app.backend.result_consumer
    result = app.AsyncResult(new_ids()[0])
    app.backend.add_pending_result(result)
    store(app, redis_db, result.id, 7, "SUCCESS")
    consumer.on_message = told.append
    consumer._look_again()
    assert result.result == 7
    meta = app.backend.get_task_meta(result.id, cache=False)
    for late in ({**meta}, {**meta, "task_id": "of another"}):
        consumer.on_state_change(late, {"type": "message"})
    assert len(told) == 1
    assert len(app.backend._pending_messages) == 0


@pytest.mark.parametrize(
    ("kind", "plain"), [(RedisBackend, True), (SentinelBackend, True), (Own, False)]
)
def test_whose_client_it_is(kind: type, plain: bool) -> None:
    assert has_celerys_client(object.__new__(kind)) is plain
    assert not has_celerys_client(DisabledBackend)


def test_a_server_that_is_silent_holds_nobody_up(
    app: Celery, redis_db: RedisDB, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "LOOK", 0.01)
    monkeypatch.setattr(subscriptions, "PATIENCE", 0.1)
    waiting = Waiting(app, redis_db, new_ids(), 3.0)
    before = looks(redis_db)
    wait_until(lambda: waiting.got or looks(redis_db) > before, "it has looked")
    began = time.monotonic()
    redis_server.pause()
    try:
        assert isinstance(waiting.end(), TimeoutError)
    finally:
        redis_server.resume()
    assert time.monotonic() - began < LONG / 2  # socket_timeout: two minutes


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "sentinel://127.0.0.1:1/0"])
def test_who_looks(url: str) -> None:
    app = Celery("results", broker="memory://", backend=url, set_as_current=False)
    app.conf.result_backend_transport_options = {"master_name": "m"}
    Graceful(app)
    assert isinstance(app.backend.result_consumer, LooksAgain)
