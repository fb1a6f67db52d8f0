"""States of tasks in Redis: stored in one round trip, and what Celery promises of them holds."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import product
from typing import Any, cast
from uuid import UUID

import celery.app.base
import pytest
from celery import Celery, states
from celery.app.task import Context
from celery.backends.redis import RedisBackend as CelerysBackend
from redis.exceptions import ConnectionError, OutOfMemoryError, ResponseError

from celery_graceful import Graceful
from celery_graceful.results import one_trip
from celery_graceful.results.one_trip import RedisBackend
from celery_graceful.store.together import Together
from tests.conftest import RedisDB


@pytest.fixture(params=["json", "pickle"])
def backend(redis_db: RedisDB, request: pytest.FixtureRequest) -> Iterator[Any]:
    app = Celery("results", broker=redis_db.url, backend=redis_db.url, set_as_current=False)
    app.conf.result_serializer = request.param
    app.conf.result_backend_transport_options = {"retry_policy": {"interval_start": 0}}
    app.conf.result_accept_content = [request.param]
    Graceful(app)
    yield app.backend
    app.close()


@pytest.fixture
def asked(backend: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the commands that this thread sends, as round trips."""
    found: list[str] = []
    mine = threading.get_ident()  # others may be at it that other tests have left
    backend.client.ping()  # connected
    connections = backend.client.connection_pool.connection_class
    plain = connections.send_packed_command

    def send(self: Any, command: Any, *args: Any, **kwargs: Any) -> Any:
        words = b"".join(command).split(b"\r\n")
        if threading.get_ident() == mine:
            found.append(words[2].decode())
        return plain(self, command, *args, **kwargs)

    monkeypatch.setattr(connections, "send_packed_command", send)
    return found


def test_a_state_is_one_round_trip(backend: Any, asked: list[str]) -> None:
    assert isinstance(backend, RedisBackend)
    backend.store_result("first", 7, states.SUCCESS)
    asked.clear()  # of a server that knew nothing yet
    for name in "abc":
        backend.store_result(name, {"pid": 1}, states.STARTED)
        backend.store_result(name, 7, states.SUCCESS)
    assert asked == ["EVALSHA"] * 6
    assert backend.get_task_meta("a")["result"] == 7
    assert 0 < backend.client.ttl(backend.get_key_for_task("a")) <= backend.expires
    assert not backend._stored


def test_little_is_remembered(backend: Any) -> None:
    """Each thread has a backend of its own."""
    backend.store_result("again", ValueError("once more"), states.RETRY)
    backend.store_result("large", {"seen": "x" * 10_000}, "PROGRESS")
    assert not backend._stored
    for number in range(300):
        backend.store_result(str(number), {"pid": 1}, states.STARTED)
    assert len(backend._stored) <= 250
    for name in ("again", "large", "7", "299"):
        backend.store_result(name, 7, states.SUCCESS)
        assert backend.get_task_meta(name, cache=False)["result"] == 7


def test_a_success_is_never_written_over(backend: Any) -> None:
    backend.store_result("a", {"pid": 1}, states.STARTED)
    other = CelerysBackend(app=backend.app, url=backend.url)
    other.store_result("a", 7, states.SUCCESS)
    backend.store_result("a", ValueError("late"), states.FAILURE)
    assert backend.get_task_meta("a", cache=False)["result"] == 7


def test_what_others_have_stored_is_written_over_as_ever(backend: Any) -> None:
    other = CelerysBackend(app=backend.app, url=backend.url)
    other.store_result("a", {"pid": 1}, states.STARTED)
    backend.store_result("a", 7, states.SUCCESS)
    assert backend.get_task_meta("a", cache=False)["result"] == 7


def test_what_is_gone_is_stored_again(backend: Any) -> None:
    backend.store_result("a", {"pid": 1}, states.STARTED)
    backend.client.delete(backend.get_key_for_task("a"))
    backend.store_result("a", 7, states.SUCCESS)
    assert backend.get_task_meta("a", cache=False)["result"] == 7


def test_who_waits_is_told(backend: Any) -> None:
    with backend.client.pubsub() as listening:
        key = backend.get_key_for_task("a")
        listening.subscribe(key)
        assert listening.get_message(timeout=30)["type"] == "subscribe"
        backend.store_result("a", 7, states.SUCCESS)
        told = listening.get_message(timeout=30)
    assert told["data"] == backend.client.get(key)


def test_an_answer_that_was_lost_is_asked_for_again(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[Any] = []
    ask = Together.ask

    def loses(*args: Any) -> Any:
        answer = ask(*args)
        if not lost:
            lost.append(answer)
            raise ConnectionError("gone")
        return answer

    monkeypatch.setattr(Together, "ask", loses)
    monkeypatch.setattr(backend, "retry_policy", {"max_retries": 2, "interval_start": 0})
    backend.store_result("a", 7, states.SUCCESS)
    assert lost == [1]
    assert backend.get_task_meta("a", cache=False)["result"] == 7


def test_a_user_who_may_run_no_scripts_stores_as_ever(
    backend: Any, redis_db: RedisDB, asked: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    rules = ["on", ">secret", "~*", "&*", "+@all", "-@scripting"]
    redis_db.client.execute_command("ACL", "SETUSER", "plain", *rules)
    try:
        backend.connparams.update(username="plain", password="secret")
        del backend.client
        with caplog.at_level("INFO"):
            for name in "ab":
                backend.store_result(name, 7, states.SUCCESS)
        assert backend.get_task_meta("b", cache=False)["result"] == 7
        assert asked.count("EVALSHA") == 1
        assert caplog.text.count("in two steps") == 1
    finally:
        redis_db.client.execute_command("ACL", "DELUSER", "plain")


def test_who_unpickles_it_need_not_have_this_package(backend: Any) -> None:
    assert type(pickle.loads(pickle.dumps(backend))) is CelerysBackend


def test_backends_of_others_are_theirs(redis_db: RedisDB) -> None:
    app = Celery("results", broker=redis_db.url, set_as_current=False)
    app.conf.result_backend = f"{__name__}:Own+{redis_db.url}"
    Graceful(app)
    assert isinstance(app.backend, Own)  # which outlasts outages, and is no other one for that
    assert not isinstance(app.backend, one_trip.RedisBackend)
    assert type(pickle.loads(pickle.dumps(app.backend))) is Own
    app.close()


REQUESTS: list[dict[str, Any] | None] = [
    None,
    {},
    {"group": "g", "parent_id": "p"},
    {"group": "", "parent_id": None, "children": []},
    {
        "task": "t",
        "args": [1, "ü", {"a": None}],
        "kwargs": {"b": [2.5]},
        "hostname": "h",
        "retries": 3,
        "delivery_info": {"routing_key": "q"},
        "stamped_headers": ["s"],
        "stamps": {"s": "1"},
    },
]

RESULTS: list[Any] = [
    (None, states.SUCCESS),
    ({"a": [1, 2.5, "ü\n", True, None, {"n": {}}], "": "\ud83d"}, states.SUCCESS),
    ([date(2026, 1, 2), Decimal("1.20"), UUID(int=7), datetime(2026, 1, 2, 3, 4)], states.SUCCESS),
    (b"\xff\x00", states.SUCCESS),
    (float("nan"), states.SUCCESS),
    ({"pid": 1, "hostname": "h"}, states.STARTED),
    ({"done": 3}, "PROGRESS"),
    (ValueError("no", 3), states.FAILURE),
    (KeyError("again"), states.RETRY),
]

SETTINGS: list[dict[str, Any]] = [
    {},
    {"result_extended": True},
    {"timezone": "Europe/Vienna"},
    {"enable_utc": False},
    {"result_expires": 60},
    {"result_expires": None},
    {"result_expires": timedelta(hours=1), "result_failure_expires": 500},
    {"result_compression": "gzip"},
    {"result_backend_transport_options": {"global_keyprefix": "mine"}},
    {"result_backend_always_retry": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_is_stored_is_celerys_to_the_byte(
    backend: Any, settings: dict[str, Any], redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2026, 3, 29, 0, 59, 59, 123450, timezone.utc).astimezone(tz)

    app = Celery("results", broker=redis_db.url, backend=redis_db.url, set_as_current=False)
    app.conf.update(settings)
    app.conf.result_serializer = backend.serializer
    Graceful(app)
    ours, plain = app.backend, CelerysBackend(app=app, url=app.conf.result_backend)
    assert type(ours) is RedisBackend
    for module in (celery.app.base, one_trip):
        monkeypatch.setattr(module, "datetime", Clock)
    client = ours.client
    for number, (request, (result, state)) in enumerate(product(REQUESTS, RESULTS)):
        context = None if request is None else Context(request)
        found, began = [], time.monotonic()
        for name, one in (("o", ours), ("p", plain)):
            task_id = f"{number}{name}"
            one.store_result(task_id, result, state, traceback="tb", request=context)
            key = one.get_key_for_task(task_id)
            stored = client.get(key)
            if not settings.get("result_compression"):
                stored = stored.replace(task_id.encode(), b"id")
            else:
                stored = decompressed(stored).replace(task_id.encode(), b"id")
            found.append((stored, client.ttl(key)))
        assert found[0][0] == found[1][0]
        assert abs(found[0][1] - found[1][1]) <= 1 + time.monotonic() - began
    app.close()


def test_what_it_says_of_its_client_is_celerys_and_read_once(
    redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Celery("results", broker=redis_db.url, backend=redis_db.url, set_as_current=False)
    Graceful(app)
    plain = CelerysBackend(app=app, url=app.conf.result_backend)
    first = RedisBackend(app=app, url=app.conf.result_backend)
    monkeypatch.setattr("importlib.metadata.version", None)
    for ours in (first, RedisBackend(app=app, url=app.conf.result_backend)):
        names = {"driver_info", "lib_name", "lib_version"}
        assert ours.connparams.keys() & names == plain.connparams.keys() & names
        for name in ours.connparams.keys() & names:
            assert ours.connparams[name] == plain.connparams[name]
    app.close()


def decompressed(stored: bytes) -> bytes:
    """What Celery 5.7 has compressed."""
    from celery.backends import base

    known = getattr(base, "decompress_payload", None)
    return cast("bytes", known(stored)) if known else stored


def test_what_cannot_be_stored_is_said_by_celery(backend: Any) -> None:
    messages = []
    for one in (backend, CelerysBackend(app=backend.app, url=backend.url)):
        with pytest.raises(Exception, match="lock") as caught:
            one.store_result("a", threading.Lock(), states.SUCCESS)
        messages.append((type(caught.value), str(caught.value)))
    assert messages[0] == messages[1]


def test_a_server_that_is_full_has_not_told_anybody(backend: Any, redis_db: RedisDB) -> None:
    backend.store_result("a", {"pid": 1}, states.STARTED)
    with backend.client.pubsub() as listening:
        listening.subscribe(backend.get_key_for_task("a"))
        assert listening.get_message(timeout=30)["type"] == "subscribe"
        redis_db.client.config_set("maxmemory", "1")
        try:
            with pytest.raises(OutOfMemoryError):
                backend.store_result("a", 7, states.SUCCESS)
        finally:
            redis_db.client.config_set("maxmemory", "0")
        backend.store_result("b", 7, states.SUCCESS)
        assert listening.get_message(timeout=0.2) is None
    assert backend.get_state("a") == states.STARTED


def test_who_may_not_tell_of_it_has_not_stored_it(backend: Any, redis_db: RedisDB) -> None:
    backend.store_result("a", {"pid": 1}, states.STARTED)
    rules = ["on", ">secret", "~*", "resetchannels", "+@all"]
    redis_db.client.execute_command("ACL", "SETUSER", "mute", *rules)
    try:
        backend.connparams.update(username="mute", password="secret")
        del backend.client
        backend._asking.clear()
        for name in "ab":
            key = backend.get_key_for_task(name)
            with pytest.raises(ResponseError):
                backend._ask(key, "new", 60, backend.client.get(key) or b"")
        assert backend.get_state("a") == states.STARTED
        assert redis_db.client.ttl(backend.get_key_for_task("a")) > 0
        assert not redis_db.client.exists(backend.get_key_for_task("b"))
    finally:
        redis_db.client.execute_command("ACL", "DELUSER", "mute")


@pytest.mark.parametrize("query", ["protocol=3", "max_connections=1", "client_name=me"])
def test_connections_are_those_that_were_configured(redis_db: RedisDB, query: str) -> None:
    app = Celery("results", broker=redis_db.url, set_as_current=False)
    app.conf.result_backend = f"{redis_db.url}?{query}"
    Graceful(app)
    for name in "abc":
        app.backend.store_result(name, name, states.SUCCESS)
        assert app.backend.get_task_meta(name, cache=False)["result"] == name
    assert app.backend._takes_scripts
    if query == "client_name=me":
        assert [one for one in redis_db.client.client_list() if one["name"] == "me"]
    app.close()


class Own(CelerysBackend):
    """Somebody's."""


@pytest.mark.parametrize("moment", ["connects", "subscribes"])
def test_garbage_is_collected_in_the_middle_of_a_subscription(
    backend: Any, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A result's finalizer unsubscribes, which would wait for a lock that its own thread has."""
    garbage = [backend.app.AsyncResult("first")]
    if moment == "subscribes":
        backend.add_pending_result(garbage[0], weak=True)
    pool = backend.client.connection_pool
    owner, name = {
        "connects": (pool, "make_connection"),
        "subscribes": (pool.connection_class, "send_packed_command"),
    }[moment]
    plain = getattr(owner, name)

    def collect_garbage(*args: Any, **kwargs: Any) -> Any:
        while garbage:
            garbage.pop()
        return plain(*args, **kwargs)

    monkeypatch.setattr(owner, name, collect_garbage)
    second = backend.app.AsyncResult("second")
    waits = threading.Thread(target=backend.add_pending_result, args=[second], daemon=True)
    waits.start()
    waits.join(60)
    assert not waits.is_alive(), "it waits for itself"
    assert not garbage
    backend.store_result("second", 7, states.SUCCESS)
    assert second.get(timeout=60) == 7
    assert not {key for key in backend.result_consumer.subscribed_to if b"first" in key}
