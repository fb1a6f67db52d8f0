"""States of tasks in Redis: stored in one round trip, and what Celery promises of them holds."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, states
from celery.backends.redis import RedisBackend as CelerysBackend
from redis.exceptions import ConnectionError

from celery_graceful import Graceful
from celery_graceful.results.one_trip import RedisBackend
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
    """Names of the commands that are sent, as round trips."""
    found: list[str] = []
    backend.client.ping()  # connected
    connections = backend.client.connection_pool.connection_class
    plain = connections.send_packed_command

    def send(self: Any, command: Any, *args: Any, **kwargs: Any) -> Any:
        words = b"".join(command).split(b"\r\n")
        found.append(words[2].decode())
        return plain(self, command, *args, **kwargs)

    monkeypatch.setattr(connections, "send_packed_command", send)
    return found


def test_a_state_is_one_round_trip(backend: Any, asked: list[str]) -> None:
    assert isinstance(backend, RedisBackend)
    for name in "abc":
        backend.store_result(name, {"pid": 1}, states.STARTED)
        backend.store_result(name, 7, states.SUCCESS)
    loads = ["SCRIPT", "EVALSHA"]  # the server did not know it, once
    assert [one for one in asked if one not in loads] == []
    assert asked.count("EVALSHA") <= 7
    assert backend.get_task_meta("a")["result"] == 7
    assert 0 < backend.client.ttl(backend.get_key_for_task("a")) <= backend.expires
    assert not backend._stored


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
    script, lost = backend._script, []

    def loses(*args: Any) -> Any:
        answer = script(*args)
        if not lost:
            lost.append(answer)
            raise ConnectionError("gone")
        return answer

    monkeypatch.setitem(vars(backend), "_script", loses)
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
        pool = backend.client.connection_pool
        pool.connection_kwargs.update(username="plain", password="secret")
        pool.reset()
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
    assert type(app.backend) is Own
    app.close()


class Own(CelerysBackend):
    """Somebody's."""
