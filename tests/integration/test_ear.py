"""Who listens for messages that nobody rings for, against a real Redis, without workers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from queue import Empty
from typing import Any

import pytest
import redis
from celery import Celery

from celery_graceful import Graceful
from celery_graceful.claims import ear as ears
from celery_graceful.claims import transport
from celery_graceful.claims.claimant import Claimant
from celery_graceful.claims.ear import HAND_OVER, LONG, SHORT, Ear
from celery_graceful.claims.held_claims import Claims
from celery_graceful.store.app_stores import broker_store
from celery_graceful.store.store import Store, StoreAway
from celery_graceful.store.tracking import Tracking
from celery_graceful.system import native
from tests.conftest import RedisDB
from tests.support.workers import TIMEOUT, wait_until

#: Of two queues with two priorities, as the channel has them: bells, then lists by priority.
KEYS = ["graceful:bell:a", "graceful:bell:b", "a", "b", "a\x06\x163", "b\x06\x163"]
NAMES = frozenset("ab")

Make = Callable[..., Ear]


def covered(ear: Ear, keys: list[str] = KEYS) -> bool:
    """Whether it may wait for long."""
    return ear.seconds(NAMES, lambda: keys) == LONG


def listens(db: RedisDB, prefix: str = "") -> list[str]:
    """Who is the ear of what."""
    return [str(db.client.get(key)) for key in db.client.keys(f"{prefix}graceful:ear:*")]


def names(db: RedisDB) -> list[str]:
    """The same, without how many they listen for."""
    return [text.split()[0] for text in listens(db)]


@pytest.fixture
def make(redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    # However long they stand still: neither their places expire, nor their rings.
    monkeypatch.setattr(ears, "TERM", 4 * TIMEOUT)
    monkeypatch.setattr(ears, "RINGS_TTL", int(4 * TIMEOUT * 1000))
    with ExitStack() as stack:

        def make(url: str = redis_db.url, prefix: str = "") -> Ear:
            app = Celery("ear", broker=url, set_as_current=False)
            app.conf.broker_transport_options = {"global_keyprefix": prefix}
            Graceful(app)
            store = broker_store(app)
            assert store is not None
            ear = Ear(store)
            stack.callback(store.disconnect)
            stack.callback(ear.end, TIMEOUT)
            return ear

        yield make


@pytest.mark.parametrize("queue", KEYS[2:])
def test_it_rings_for_what_nobody_rings_for(queue: str, make: Make, redis_db: RedisDB) -> None:
    ear, db = make(), redis_db.client
    wait_until(lambda: covered(ear), "somebody listens")
    db.lpush(queue, "message")
    wait_until(lambda: db.exists(f"graceful:bell:{queue[0]}"), "rung")
    assert not db.exists(f"graceful:bell:{'ba'['ab'.index(queue[0])]}"), "nothing waits there"
    for _ in range(3):
        db.lpush(queue, "more")
    assert db.llen(f"graceful:bell:{queue[0]}") == 1, "who comes rings on"
    db.rpop(f"graceful:bell:{queue[0]}")  # a worker that dies with the ring in its hand
    wait_until(lambda: db.exists(f"graceful:bell:{queue[0]}"), "rung again")


def test_it_is_told_at_once(make: Make, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at its next look."""
    monkeypatch.setattr(ears, "LOOK", 2 * TIMEOUT)  # for longer than anything is waited for
    ear, db = make(), redis_db.client
    wait_until(lambda: covered(ear), "somebody listens")
    for _ in range(3):
        db.lpush("b", "message")
        wait_until(lambda: db.exists("graceful:bell:b"), "rung")
        db.delete("b", "graceful:bell:b")
        wait_until(lambda: not db.exists("b", "graceful:bell:b"), "nothing waits")


@pytest.mark.parametrize("protocol", [2, 3])
def test_what_it_is_told(protocol: int, redis_db: RedisDB) -> None:
    """Which keys have changed, in each protocol; once, and of those that were asked for."""
    db, bell = redis_db.client, native.Doorbell()
    store = Store("here", lambda _: redis.ConnectionPool.from_url(redis_db.url, protocol=protocol))
    tracking = Tracking(store)
    assert tracking.ask(("EXISTS", "a", "b")) == [0]
    db.lpush("a", "message")
    db.lpush("c", "message")
    assert tracking.wait(30, bell) == {"a"}
    bell.ring()
    assert tracking.wait(30, bell) is None
    assert tracking.ask(("EXISTS", "a", "b")) == [1]
    db.flushdb()
    assert tracking.wait(30, bell) is not None
    tracking.close()


def test_one_listens_for_all(make: Make, redis_db: RedisDB) -> None:
    """And another one, whatever the order of their queues; and for others somebody else does."""
    turned = [*KEYS[1::-1], *KEYS[3:1:-1], *KEYS[:3:-1]]
    one, two, three, other = make(), make(), make(), make()
    wait_until(lambda: covered(one) and covered(two, turned), "somebody listens")
    wait_until(lambda: covered(three), "it knows that")
    assert len(listens(redis_db)) == 2
    wait_until(lambda: covered(other, ["graceful:bell:c", "d", "c", "d"]), "somebody listens")
    assert len(listens(redis_db)) == 3
    assert three._name not in str(listens(redis_db))


def test_keys_have_their_prefix(make: Make, redis_db: RedisDB) -> None:
    ear = make(prefix="shop:")
    wait_until(lambda: covered(ear, ["shop:" + key for key in KEYS]), "somebody listens")
    assert listens(redis_db, "shop:")
    redis_db.client.lpush("shop:a", "message")
    wait_until(lambda: redis_db.client.exists("shop:graceful:bell:a"), "rung")
    ear.end(TIMEOUT)
    assert not listens(redis_db, "shop:")
    assert redis_db.client.lrange("shop:graceful:bell:a", 0, 0) == [HAND_OVER]


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Ear], threading.Event]]:
    """Freezes one; what that returns is set when it is. It goes on when that is cleared."""
    ask, ended = Tracking.ask, threading.Event()

    def freeze(ear: Ear) -> threading.Event:
        is_frozen, goes_on = threading.Event(), threading.Event()

        def ask_or_freeze(self: Tracking, *commands: tuple[object, ...]) -> list[object]:
            if self._store is ear._store and not goes_on.is_set():
                is_frozen.set()
                while is_frozen.is_set() and not ended.wait(0.05):
                    pass
                goes_on.set()
            return ask(self, *commands)

        monkeypatch.setattr(Tracking, "ask", ask_or_freeze)
        assert is_frozen.wait(30)
        return is_frozen

    yield freeze
    ended.set()


def test_one_is_enough(
    make: Make, redis_db: RedisDB, frozen: Callable[[Ear], threading.Event]
) -> None:
    """While one of two is frozen the other one rings."""
    one, two = make(), make()
    for each in (one, two):
        wait_until(lambda: covered(one) and covered(two), "they listen")
        wait_until(lambda: len(listens(redis_db)) == 2, "both")
        is_frozen = frozen(each)
        redis_db.client.lpush("a", "message")
        wait_until(lambda: redis_db.client.exists("graceful:bell:a"), "rung")
        assert is_frozen.is_set()
        redis_db.client.delete("a", "graceful:bell:a")
        is_frozen.clear()


def test_rings_that_are_lost_are_mended_faster_and_faster(make: Make, redis_db: RedisDB) -> None:
    """Workers on a machine that is gone wait at Redis still, and are rung for first."""
    ear, db = make(), redis_db.client
    wait_until(lambda: covered(ear), "it listens")
    db.lpush("a", "message")
    while db.llen("graceful:bell:a") < 4:
        assert db.brpop("graceful:bell:a", 30), "rung again"
    db.delete("a", "graceful:bell:a")
    wait_until(lambda: not db.exists("a", "graceful:bell:a"), "nothing waits")


def test_another_one_follows(
    make: Make,
    redis_db: RedisDB,
    monkeypatch: pytest.MonkeyPatch,
    frozen: Callable[[Ear], threading.Event],
) -> None:
    """One that is frozen finds another one at it when it goes on."""
    monkeypatch.setattr(ears, "EARS", 1)
    monkeypatch.setattr(ears, "LOOK", 0.1)
    monkeypatch.setattr(ears, "OFTEN", 0.2)
    one, two = make(), make()
    one._name, two._name = sorted((one._name, two._name))  # of two, the last one stays
    wait_until(lambda: covered(one), "one listens")
    assert names(redis_db) == [one._name]
    wait_until(lambda: covered(two), "the other one knows")
    is_frozen = frozen(one)
    monkeypatch.setattr(ears, "TERM", 2.0)
    for key in redis_db.client.keys("graceful:ear:*"):
        redis_db.client.pexpire(key, 2000)
    wait_until(lambda: names(redis_db) == [two._name], "another one listens")
    redis_db.client.lpush("a", "message")
    wait_until(lambda: redis_db.client.exists("graceful:bell:a"), "rung")
    one._heard = None, 0.0  # what it knew before
    is_frozen.clear()
    wait_until(lambda: covered(one), "it knows who does")
    wait_until(lambda: names(redis_db) == [two._name], "that is the other one")


def test_of_a_fleet_one_that_asks_anyway_asks_for_ears_as_well(
    make: Make, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And for who they are when one is missing, or now and then."""
    monkeypatch.setattr(ears, "OFTEN", 1.1)
    monkeypatch.setattr(ears, "EARS", 1)
    ear, asked = make(), []
    key = f"graceful:ear:{ears._Queues(2, KEYS).digest}:0"
    redis_db.client.set(key, "another 50")
    monkeypatch.setattr(ear._bell, "wait", lambda seconds: ear._gone.wait(0.05))
    execute = ear._store.execute

    def counted(command: str, *args: Any, **options: Any) -> Any:
        asked.append(command)
        return execute(command, *args, **options)

    monkeypatch.setattr(ear._store, "execute", counted)
    wait_until(lambda: covered(ear), "somebody listens")
    wait_until(lambda: "EXISTS" in asked, "it asks together with others")
    assert asked.count("MGET") <= 2  # the first time it may ask twice
    redis_db.client.delete(key)
    ear._store.any_exists("another", age=0.0)  # as who looks for something else
    wait_until(lambda: names(redis_db) == [ear._name], "it takes the place")


def test_who_leaves_has_another_one_follow(
    make: Make, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ears, "EARS", 1)
    one, two = make(), make()
    wait_until(lambda: covered(one), "one listens")
    wait_until(lambda: covered(two), "the other one knows")
    one.end(TIMEOUT)
    assert redis_db.client.lrange("graceful:bell:a", 0, -1) == [HAND_OVER]
    two._heard = None, 0.0  # what it knew before
    two.ask()  # as its channel does when it gets that
    wait_until(lambda: names(redis_db) == [two._name], "it follows")
    wait_until(lambda: covered(two), "and knows it")


def test_lost_connections_are_made_again(make: Make, redis_db: RedisDB) -> None:
    ear, db = make(), redis_db.client
    wait_until(lambda: covered(ear), "it listens")
    me, number = db.client_id(), str(db.connection_pool.connection_kwargs["db"])
    for client in db.client_list():
        if client["id"] != str(me) and client["db"] == number:
            db.client_kill_filter(_id=client["id"])
    db.lpush("a", "message")
    wait_until(lambda: db.exists("graceful:bell:a"), "rung")


def test_one_that_is_told_nothing_any_more(
    make: Make, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is dead, as behind a firewall: it looks each second, and makes others."""
    made: list[Tracking] = []
    waited: list[Tracking] = []
    start, wait = Tracking.__init__, Tracking.wait

    def count(self: Tracking, store: object) -> None:
        made.append(self)
        start(self, store)  # type: ignore[arg-type]

    def deaf(self: Tracking, seconds: float, bell: native.Doorbell) -> set[str] | None:
        told = wait(self, seconds, bell)
        waited.append(self)
        return None if self is made[0] else told

    monkeypatch.setattr(ears, "LOOK", 0.1)
    monkeypatch.setattr(Tracking, "__init__", count)
    monkeypatch.setattr(Tracking, "wait", deaf)
    ear = make()
    wait_until(lambda: covered(ear), "it listens")
    before = len(waited)
    wait_until(lambda: len(waited) > before + 2, "it has looked twice")
    redis_db.client.lpush("a", "message")
    wait_until(lambda: redis_db.client.exists("graceful:bell:a"), "rung")
    wait_until(lambda: len(made) > 1 and covered(ear), "it listens again")


def test_where_redis_does_not_tell_each_looks_for_itself(
    make: Make, redis_db: RedisDB, caplog: pytest.LogCaptureFixture
) -> None:
    db = redis_db.client
    db.execute_command("ACL SETUSER deaf on >x ~* &* +@all -client")
    try:
        ear = make(redis_db.url.replace("://", "://deaf:x@"))
        with caplog.at_level("INFO", "celery_graceful"):
            assert not covered(ear)
            wait_until(lambda: "CLIENT TRACKING" in caplog.text, "it is said")
            wait_until(lambda: not listens(redis_db), "it is not the ear")
        assert ear.seconds(NAMES, lambda: KEYS) == SHORT
        assert caplog.text.count("CLIENT TRACKING") == 1
    finally:
        db.execute_command("ACL DELUSER deaf")


def test_a_wait_for_other_queues_is_ended(make: Make, redis_db: RedisDB) -> None:
    ear = make()
    wait_until(lambda: covered(ear), "it listens")
    ear.wake()
    assert redis_db.client.brpop(ear.wake_key, 30) is not None
    assert ear.seconds(frozenset("c"), lambda: ["graceful:bell:c", "c"]) == SHORT
    wait_until(lambda: ear.seconds(frozenset("c"), list) == LONG, "it listens for that")


def test_an_outage_is_no_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ears, "SHORT", 0.05)
    ear, times = make(), []

    def away(*_: object, **__: object) -> None:
        times.append(1)
        raise StoreAway("away")

    monkeypatch.setattr(ear._store, "execute", away)
    assert not covered(ear)
    wait_until(lambda: len(times) > 2, "it asks again")
    monkeypatch.undo()
    wait_until(lambda: covered(ear), "it listens")


@pytest.mark.parametrize("listening", [True, False])
def test_who_waits_for_long_leaves_the_queues_to_the_ears(
    listening: bool, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for a second looks into them in between."""
    monkeypatch.setattr(transport, "SHORT", 0.1)
    app = Celery("waits", broker=redis_db.url, set_as_current=False)
    Graceful(app)
    store = broker_store(app)
    assert store is not None
    redis_db.client.sadd("graceful:workers", "w")
    book = Claims(store)
    book.claim_as(Claimant("w"))
    monkeypatch.setattr(book.ear, "seconds", lambda *args: 0.2 if listening else 0.1)
    asked = []
    with app.connection() as connection, connection.channel() as channel:
        channel.claim_for(book)
        channel.basic_consume("a", False, print, "tag")
        channel.client.connection = channel.client.connection_pool.get_connection("_")  # as kombu
        for _ in range(4):
            with suppress(Empty):
                channel._brpop_start()
                asked.append(channel._fetch.kind)
                channel._brpop_read()
    if listening:
        assert asked == ["EVALSHA", "BRPOP", "BRPOP", "BRPOP"]
    else:
        assert asked == ["EVALSHA", "BRPOP", "EXISTS", "BRPOP"]
