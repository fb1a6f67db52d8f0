"""What an error in the middle of a script breaks off: no message is in no place.

A key is of the wrong type, which somebody else has written to, or the Redis is full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from celery_graceful import Graceful
from celery_graceful.store.app_stores import broker_store
from celery_graceful.store.store import SEPARATOR, Store, StoreRefused
from celery_graceful.unusable.waiting import Kind, Stray, WaitingRoom
from tests.conftest import RedisDB

CLAIMS, BACK, KIND = "graceful:claims:me", "graceful:back:me", Kind("celery", "new")


@pytest.fixture
def store(redis_db: RedisDB) -> Store:
    app = Celery("broken", broker=redis_db.url, set_as_current=False)
    Graceful(app)
    found = broker_store(app)
    assert found is not None
    return found


def claimed(redis_db: RedisDB, *lists: str) -> None:
    """A claim of each of these lists: 1, 2 and so on."""
    entries = {str(number): f"{name}\0message {number}" for number, name in enumerate(lists, 1)}
    redis_db.client.hset(CLAIMS, mapping=entries)


@pytest.fixture(params=["no list", "full"])
def broken(request: pytest.FixtureRequest, redis_db: RedisDB) -> Iterator[Callable[[str], None]]:
    """Breaks a key; or makes the server take nothing that is new, which these scripts outlast."""
    client, before = redis_db.client, redis_db.client.config_get("maxmemory*")

    def break_(key: str) -> None:
        if request.param == "no list":
            client.set(key, "junk")
        else:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "1mb")

    break_.how = request.param  # type: ignore[attr-defined]
    yield break_
    for name, value in before.items():
        client.config_set(name, value)


def is_full(broken: Any) -> bool:
    return bool(broken.how == "full")


# -- claims --------------------------------------------------------------------------


def claim(store: Store, *lists: str, order: str = "in order") -> Any:
    keys = ["graceful:workers", CLAIMS, *(f"graceful:bell:{one}" for one in lists), *lists]
    return store.run("claim", keys, ["me", 1, 10, len(lists), order])


@pytest.mark.parametrize("order", ["in order", "in turn"])
@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_taken_before_is_claimed(
    order: str, workers: int, store: Store, redis_db: RedisDB
) -> None:
    client = redis_db.client
    client.sadd("graceful:workers", "me", *range(workers - 1))
    client.lpush("a", "one", "two")
    client.set("b", "junk")
    client.lpush("c", "three")
    found = []
    for _ in range(3):  # not more than its share
        try:
            found += claim(store, "a", "b", "c", order=order)[1::2]
        except StoreRefused:
            break
    there = [text.partition("\0")[2] for text in client.hvals(CLAIMS)]
    left = [*client.lrange("a", 0, -1), *client.lrange("c", 0, -1)]
    assert sorted([*found, *left]) == ["one", "three", "two"]
    assert set(there) <= set(found)
    with pytest.raises(StoreRefused, match="WRONGTYPE"):
        claim(store, "b", order=order)


def test_claims_that_are_no_hash_take_nothing(store: Store, redis_db: RedisDB) -> None:
    client = redis_db.client
    client.sadd("graceful:workers", "me")
    client.lpush("a", "one")
    client.set(CLAIMS, "junk")
    with pytest.raises(StoreRefused, match="WRONGTYPE"):
        claim(store, "a")
    assert client.lrange("a", 0, -1) == ["one"]


def test_what_cannot_go_back_is_still_claimed(
    broken: Callable[[str], None], store: Store, redis_db: RedisDB
) -> None:
    client, args = redis_db.client, ["", "RPUSH", 10**6, SEPARATOR]
    claimed(redis_db, "a", "b", "c")
    for number, name in enumerate("abc", 1):
        args += [str(number), name, f"message {number}", "", ""]
    keys = [CLAIMS, "graceful:epoch", "graceful:gone:me", BACK]
    broken("b")
    if is_full(broken):
        assert store.run("give_back", keys, args) == [3, 3]
        assert client.lrange("b", 0, -1) == ["message 2"]
        return
    for _ in range(2):
        with pytest.raises(StoreRefused, match="WRONGTYPE"):
            store.run("give_back", keys, args)
        assert client.hkeys(CLAIMS) == ["2"]
        assert client.lrange("a", 0, -1) + client.lrange("c", 0, -1) == ["message 1", "message 3"]
    client.delete("b")
    assert store.run("give_back", keys, args) == [1, 3]
    assert (client.lrange("b", 0, -1), client.exists(CLAIMS)) == (["message 2"], 0)


def test_what_redis_has_lost_goes_back_when_it_can(store: Store, redis_db: RedisDB) -> None:
    """It is no claim there: what went back is noted when it has."""
    keys = [CLAIMS, "graceful:epoch", "graceful:gone:me", BACK]
    args = ["", "RPUSH", 10**6, SEPARATOR, "1", "a", "message 1", "an epoch before", ""]
    redis_db.client.set("a", "junk")
    with pytest.raises(StoreRefused, match="WRONGTYPE"):
        store.run("give_back", keys, args)
    redis_db.client.delete("a")
    assert store.run("give_back", keys, args) == [1, 1]
    assert store.run("give_back", keys, args) == [0, 1]
    assert redis_db.client.lrange("a", 0, -1) == ["message 1"]


def test_what_cannot_go_back_is_still_unacked(
    broken: Callable[[str], None], store: Store, redis_db: RedisDB
) -> None:
    client, moves = redis_db.client, []
    for number, name in enumerate("abc", 1):
        client.hset("unacked", str(number), "message, exchange, key")
        client.zadd("unacked_index", {str(number): 1})
        moves += [str(number), name, f"message {number}"]
    broken("b")
    if is_full(broken):
        assert store.run("requeue", ["unacked", "unacked_index"], ["RPUSH", *moves]) == 3
        return
    with pytest.raises(StoreRefused, match="WRONGTYPE"):
        store.run("requeue", ["unacked", "unacked_index"], ["RPUSH", *moves])
    assert client.hkeys("unacked") == client.zrange("unacked_index", 0, -1) == ["2"]
    client.delete("b")
    assert store.run("requeue", ["unacked", "unacked_index"], ["RPUSH", *moves]) == 1


# -- quarantine ----------------------------------------------------------------------


@pytest.mark.parametrize("key", ["graceful:quarantine", "graceful:untold"])
def test_what_cannot_be_kept_is_still_claimed(
    key: str, broken: Callable[[str], None], store: Store, redis_db: RedisDB
) -> None:
    client = redis_db.client
    claimed(redis_db, "a")
    keys = ["graceful:quarantine", "graceful:untold", "deaths", "started", CLAIMS]
    broken(key)
    if not is_full(broken):
        with pytest.raises(StoreRefused, match="WRONGTYPE"):
            store.run("quarantine", keys, ["id", "kept", "1"])
        assert client.hkeys(CLAIMS) == ["1"]
        client.delete(key)
    assert store.run("quarantine", keys, ["id", "kept", "1"]) == [1]
    assert (client.exists(CLAIMS), client.hgetall("graceful:quarantine")) == (0, {"id": "kept"})
    assert store.run("quarantine", keys, ["id", "kept", "1"]) == [0]


def test_what_cannot_be_sent_again_is_still_kept(
    broken: Callable[[str], None], store: Store, redis_db: RedisDB
) -> None:
    client, args = redis_db.client, ["id", "message", "", ""]
    keys = ["graceful:quarantine", "graceful:untold", "graceful:released:id", "a"]
    client.hset("graceful:quarantine", "id", "kept")
    client.zadd("graceful:untold", {"id": 1})
    broken("a")
    if not is_full(broken):
        with pytest.raises(StoreRefused, match="WRONGTYPE"):
            store.run("release", keys, args)
        assert client.hgetall("graceful:quarantine") == {"id": "kept"}
        client.delete("a")
    assert store.run("release", keys, args) == 1
    assert (client.lrange("a", 0, -1), client.exists(*keys[:2])) == (["message"], 0)
    assert store.run("release", keys, args) == 0


# -- tasks that are not known --------------------------------------------------------


def waits(store: Store, redis_db: RedisDB) -> WaitingRoom:
    """The first claim has been set aside."""
    room = WaitingRoom(store)
    claimed(redis_db, "celery", "celery")
    assert room.wait("me", 60, [Stray("id", KIND, "1")]) == ["waits"]
    return room


@pytest.mark.parametrize("key", ["", ":messages", ":due", ":of:celery\0new"])
def test_what_cannot_be_set_aside_is_still_claimed(
    key: str, broken: Callable[[str], None], store: Store, redis_db: RedisDB
) -> None:
    client, room = redis_db.client, WaitingRoom(store)
    claimed(redis_db, "celery")
    broken(f"graceful:waiting{key}")
    if not is_full(broken):
        with pytest.raises(StoreRefused, match="WRONGTYPE"):
            room.wait("me", 60, [Stray("id", KIND, "1")])
        assert client.hkeys(CLAIMS) == ["1"]
        client.delete(f"graceful:waiting{key}")
    assert room.wait("me", 60, [Stray("id", KIND, "1")]) == ["waits"]
    assert not client.exists(CLAIMS)
    assert room.kinds()[KIND] >= 1


def test_what_waits_and_cannot_be_claimed_still_waits(
    broken: Callable[[str], None], store: Store, redis_db: RedisDB
) -> None:
    client, room = redis_db.client, waits(store, redis_db)
    client.sadd("graceful:workers", "you")
    args = ["", "take", "you", 1, "\0".join(KIND), 5]
    keys = [*(f"graceful:waiting{name}" for name in ("", ":messages", ":due"))]
    keys += ["graceful:claims:you", "graceful:workers"]
    broken("graceful:claims:you")
    if not is_full(broken):
        with pytest.raises(StoreRefused, match="WRONGTYPE"):
            store.run("waiting", keys, args)
        assert room.kinds() == {KIND: 1}
        client.delete("graceful:claims:you")
    assert store.run("waiting", keys, args) == ["celery", "message 1"]
    assert client.hvals("graceful:claims:you") == ["celery\0message 1"]
    assert room.kinds() == {}


def test_what_waits_and_cannot_go_back_still_waits(
    broken: Callable[[str], None], store: Store, redis_db: RedisDB
) -> None:
    client, room = redis_db.client, waits(store, redis_db)
    broken("celery")
    if not is_full(broken):
        with pytest.raises(StoreRefused, match="WRONGTYPE"):
            room.back(everything=True)
        assert room.kinds() == {KIND: 1}
        client.delete("celery")
    assert room.back(everything=True) == 1
    assert client.lrange("celery", 0, -1) == ["message 1"]
    assert room.kinds() == {}
