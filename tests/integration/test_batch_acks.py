"""Ends of members on their way: with acknowledgements, before them, and while a store is away."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty
from typing import Any

import pytest
from celery import Celery
from kombu import Connection
from redis.exceptions import ConnectionError as RedisConnectionError

from celery_graceful import Graceful
from celery_graceful.batches import ends as ends_module
from celery_graceful.batches.cancellations import known_of
from celery_graceful.batches.ends import Ends
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.member_part import CallbackEnd
from celery_graceful.batches.model import Due, End, Outcome
from celery_graceful.claims import acks as acks_module
from celery_graceful.claims import qos as qos_module
from celery_graceful.claims import sending as sending_module
from celery_graceful.claims import transport as transport_module
from celery_graceful.claims.acks import Acks
from celery_graceful.claims.claimant import Claimant
from celery_graceful.claims.fetch import END as END_SCRIPT
from celery_graceful.claims.held_claims import Claims, Tag
from celery_graceful.store.app_stores import broker_store
from celery_graceful.store.store import Store, StoreAway, StoreForbidden
from celery_graceful.system import native
from tests.conftest import RedisDB
from tests.servers import RedisServer
from tests.support.patience import has_patience
from tests.support.workers import TIMEOUT, wait_until

END = End("batch", "member", Outcome.SUCCEEDED)


def app_of(url: str, **conf: Any) -> Celery:
    app = Celery("acks", broker=url, set_as_current=False)
    app.conf.update(conf)
    return app


class Writer:
    """Takes ends, and refuses them as long as it is told to."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.raises: list[Exception] = []

    def __call__(self, store: Store, ends: Sequence[tuple[Any, tuple[str, int]]]) -> None:
        with suppress(IndexError):  # the test may clear it at this moment
            raise self.raises.pop(0)
        self.written += ends
        for _, (worker, number) in ends:
            store.execute("HDEL", [f"graceful:claims:{worker}"], [number])


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def claims(redis_db: RedisDB, writer: Writer) -> Any:
    store = broker_store(app_of(redis_db.url))
    assert store is not None
    claims = Claims(store, write_ends=writer)
    redis_db.client.hset("graceful:claims:me", mapping={str(n): "celery\0{}" for n in range(1, 5)})
    yield claims
    claims.end(TIMEOUT)


def left(redis_db: RedisDB) -> set[str]:
    return set(redis_db.client.hkeys("graceful:claims:me"))


def test_an_end_goes_with_its_acknowledgement(
    claims: Claims, writer: Writer, redis_db: RedisDB
) -> None:
    tags = [claims.tag("me", number) for number in (1, 2)]
    claims.end_with(tags[0], END)
    claims.ended.update(tags)
    for tag in tags:
        claims.ack(tag)
    claims.settle()  # the connection was lost as well: it is said twice
    assert claims.flush(TIMEOUT)
    assert left(redis_db) == {"3", "4"}
    assert set(writer.written) == {(END, ("me", 1))}
    assert not claims.has_ends


def test_what_ends_while_others_are_written_is_gathered_anew(
    redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each step is followed by one of few, which costs nearly as much."""
    monkeypatch.setattr(acks_module, "QUIET", 600.0)
    monkeypatch.setattr(acks_module, "GATHER_ENDS", 600.0)
    store = broker_store(app_of(redis_db.url))
    assert store is not None
    written: list[int] = []

    def write(store: Store, ends: Sequence[tuple[Any, tuple[str, int]]]) -> None:
        written.append(len(ends))
        if len(written) == 1:
            add(500)

    def add(number: int) -> None:
        acks.along[f"me/{number}"] = END
        acks.add("me", number)

    acks = Acks(store, native.Lock(), lambda worker, numbers: None, write)
    for number in range(acks_module.MANY_ENDS):
        add(number)
    acks.send_ends(at_once=False)
    assert written == [acks_module.ENDS]
    acks.send_ends(at_once=True)
    assert written == [acks_module.ENDS, acks_module.MANY_ENDS - acks_module.ENDS + 1]


def test_an_end_that_cannot_be_written_keeps_its_claim(
    claims: Claims, writer: Writer, redis_db: RedisDB
) -> None:
    """And nobody else's."""
    writer.raises += [StoreAway("not now")] * 10_000
    claims.end_with(claims.tag("me", 1), END)
    claims.ack(claims.tag("me", 1))
    claims.ack(claims.tag("me", 2))
    wait_until(lambda: left(redis_db) == {"1", "3", "4"}, "the other one")
    writer.raises.clear()
    wait_until(lambda: left(redis_db) == {"3", "4"}, "both")
    assert writer.written == [(END, ("me", 1))]


def test_an_end_that_is_forbidden_keeps_nobody(
    claims: Claims, writer: Writer, redis_db: RedisDB
) -> None:
    writer.raises.append(StoreForbidden("never"))
    claims.end_with(claims.tag("me", 1), END)
    claims.ack(claims.tag("me", 1))
    assert claims.flush(TIMEOUT)
    assert left(redis_db) == {"2", "3", "4"}


def test_what_goes_back_has_not_ended(claims: Claims, writer: Writer, redis_db: RedisDB) -> None:
    claims.end_with(claims.tag("me", 1), END)
    assert claims.give_back([claims.tag("me", 1)]) == 1
    assert not claims.has_ends
    assert writer.written == []


def test_ends_that_a_failover_has_undone_are_written_again(
    claims: Claims, writer: Writer, redis_db: RedisDB
) -> None:
    claims.end_with(claims.tag("me", 1), END)
    for _ in range(2):  # a connection was lost: it is said twice
        claims.ack(claims.tag("me", 1))
    assert claims.flush(TIMEOUT)
    written = len(writer.written)
    redis_db.client.hset("graceful:claims:me", "1", "celery\0{}")  # a replica that lagged
    claims.give_back_others("me", 2)
    assert claims.flush(TIMEOUT)
    assert left(redis_db) == {"2", "3", "4"}
    assert writer.written == [(END, ("me", 1))] * (written + 1)
    assert redis_db.client.llen("celery") == 0


def test_what_is_just_being_sent_is_not_sent_yet(
    claims: Claims, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, go_on = threading.Event(), threading.Event()
    execute = claims.store.execute

    def slowly(*args: Any, **kwargs: Any) -> Any:
        under_way.set()
        assert go_on.wait(TIMEOUT)
        return execute(*args, **kwargs)

    monkeypatch.setattr(claims.store, "execute", slowly)
    claims.ack(claims.tag("me", 1))
    assert under_way.wait(TIMEOUT)
    assert claims.left() == 1
    assert not claims.flush(0.01)
    go_on.set()
    assert claims.flush(TIMEOUT)
    assert left(redis_db) == {"2", "3", "4"}


def test_of_what_is_acknowledged_no_message_is_kept(claims: Claims, redis_db: RedisDB) -> None:
    """It has ended: where Redis has lost it, nobody writes it again. It is still not given back."""
    tag = claims.tag("me", 1)
    claims.held[tag] = object()
    claims.ack(tag)
    with claims.restoring("me", "another") as entries:
        assert entries == []
    assert claims.flush(TIMEOUT)
    assert not claims.held


def batch_of(store: Store, *members: str) -> BatchLedger:
    ledger = BatchLedger(store)
    ledger.create("batch", ttl=60, linger=30)
    ledger.begin_sending("batch")
    ledger.add("batch", [(member, b"") for member in members])
    ledger.sent("batch")
    return ledger


@contextmanager
def fetching(
    redis_db: RedisDB, *members: str, callback: Callable[..., Any] = print, **kwargs: Any
) -> Iterator[tuple[Any, Claims, BatchLedger]]:
    """A channel that claims, whose worker knows that these have ended; one message waits."""
    app = app_of(redis_db.url)
    Graceful(app)
    store = broker_store(app)
    assert store is not None
    ledger = batch_of(store, *members)
    redis_db.client.sadd("graceful:workers", "me")
    redis_db.client.rpush("celery", "a message")
    claims = {str(number): "celery\0{}" for number, _ in enumerate(members, 1)}
    redis_db.client.hset("graceful:claims:me", mapping=claims)
    ends = Ends(app, lambda: None, lambda store, some: None)
    book = Claims(store, write_ends=ends.write, ends_along=ends.along, **kwargs)
    who = Claimant("me")
    assert who.take_numbers(6) == 1
    book.claim_as(who)
    with app.connection() as connection, connection.channel() as channel:
        channel.claim_for(book)
        channel.basic_consume("celery", False, callback, "tag")
        channel.client.connection = channel.client.connection_pool.get_connection("_")  # as kombu
        for number, member in enumerate(members, 1):
            tag = book.tag("me", number)
            book.end_with(tag, END._replace(member=member))
            book.ack(tag)
        yield channel, book, ledger
        assert known_of(app).age("batch") < math.inf
    book.end(TIMEOUT)


def step(channel: Any) -> str:
    """One turn of what fetches; its kind."""
    channel._brpop_start()
    if channel._fetch is None:
        return ""
    kind: str = channel._fetch.kind
    with suppress(Empty):
        channel._brpop_read()
    return kind


@pytest.fixture
def ripe(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has ended is ripe at once, and the thread leaves it alone."""
    monkeypatch.setattr(acks_module, "LATE", 0.0)
    for name in ("QUIET", "GATHER_ENDS"):
        monkeypatch.setattr(acks_module, name, 600.0)


@pytest.mark.usefixtures("ripe")
def test_who_fetches_writes_ends_down_between_claims(redis_db: RedisDB) -> None:
    with fetching(redis_db, "one", "two") as (channel, book, ledger):
        assert step(channel) == "END"
        assert ledger.status("batch").succeeded == 2
        assert left(redis_db) == set()
        assert not book.has_ends
        assert step(channel) == "EVALSHA"
        assert redis_db.client.hgetall("graceful:claims:me") == {"7": "celery\0a message"}


@pytest.mark.usefixtures("ripe")
def test_ends_go_while_the_pool_has_enough_to_do(
    redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sooner than they would delay a claim."""
    monkeypatch.setattr(acks_module, "LATE", 600.0)
    monkeypatch.setattr(acks_module, "RIPE", 0.0)
    monkeypatch.setattr(qos_module, "LATELY", 600.0)
    with fetching(redis_db, "one") as (channel, book, ledger):
        book.has_enough = lambda room, took: True
        assert step(channel) == "END"
        assert ledger.status("batch").succeeded == 1
        assert step(channel) == ""
        assert redis_db.client.llen("celery") == 1


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch, ripe: None) -> None:
    """What has ended is ripe behind a claim, but not in its place."""
    monkeypatch.setattr(acks_module, "LATE", 600.0)
    monkeypatch.setattr(acks_module, "RIPE", 0.0)


@pytest.mark.usefixtures("behind")
def test_ends_follow_a_claim(redis_db: RedisDB) -> None:
    """They are on their way while what was claimed is delivered."""
    seen: list[str] = []
    with fetching(
        redis_db,
        "one",
        callback=lambda message: seen.append(channel._fetch.kind),
        delivers_at_once=True,
    ) as (channel, book, ledger):
        a_message(redis_db)
        assert step(channel) == "EVALSHA"
        assert seen == ["END"]
        if channel._fetch is not None:  # its answer was not there yet
            channel._brpop_read()
        assert ledger.status("batch").succeeded == 1
        assert not book.has_ends
        assert left(redis_db) == {"7"}


@pytest.mark.usefixtures("behind")
def test_the_answer_to_ends_is_read_where_there_is_no_room(redis_db: RedisDB) -> None:
    with fetching(redis_db, "one", delivers_at_once=True) as (channel, _, ledger):
        a_message(redis_db)
        channel.basic_qos(0, 1, False)
        channel._brpop_start()
        wait_until(channel.client.connection.can_read)
        redis_db.client.client_pause(60_000, all=False)  # scripts wait
        channel._brpop_read()
        assert channel._fetch.kind == "END"
        assert channel.qos.can_consume()
        redis_db.client.client_unpause()
        channel._brpop_read()
        assert not channel.qos.can_consume()
        assert ledger.status("batch").succeeded == 1


@pytest.mark.usefixtures("behind")
def test_what_was_claimed_is_delivered_though_ends_cannot_be_sent(
    redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered: list[Any] = []
    hears = {"callback": delivered.append, "delivers_at_once": True}
    with fetching(redis_db, "one", **hears) as (channel, book, ledger):
        a_message(redis_db)
        channel._brpop_start()
        monkeypatch.setattr(transport_module, "send_quickly", lost)
        channel._brpop_read()
        assert len(delivered) == 1
        assert channel._fetch is None
        assert book.flush(TIMEOUT)
        assert ledger.status("batch").succeeded == 1
        assert left(redis_db) == {"7"}


def a_message(redis_db: RedisDB) -> None:
    """Of kombu's, in place of the other one."""
    redis_db.client.delete("celery")
    with Connection(redis_db.url) as connection:
        connection.SimpleQueue("celery").put({})


def lost(connection: Any, *command: Any) -> None:
    """As redis-py does where nothing can be sent."""
    connection.disconnect()
    raise RedisConnectionError("reset by peer")


@pytest.mark.usefixtures("ripe")
def test_ends_that_fail_keep_nobody_from_claiming(redis_db: RedisDB) -> None:
    """And their messages stay claimed, until the thread has said why."""
    broken = "graceful:batch:batch:succeeded"
    with fetching(redis_db, "one", "two") as (channel, book, ledger):
        redis_db.client.set(broken, "is no set")
        assert [step(channel), step(channel)] == ["END", "EVALSHA"]
        assert left(redis_db) == {"1", "2", "7"}
        assert book.has_ends
        redis_db.client.delete(broken)
        assert book.flush(TIMEOUT)
        assert left(redis_db) == {"7"}
        assert ledger.status("batch").succeeded == 2


@pytest.mark.usefixtures("ripe")
def test_ends_whose_script_redis_has_forgotten(redis_db: RedisDB) -> None:
    with fetching(redis_db, "one") as (channel, book, ledger):
        channel._known_scripts = frozenset({END_SCRIPT.sha})
        redis_db.client.script_flush()
        assert step(channel) == "END"
        assert book.flush(TIMEOUT)
        assert ledger.status("batch").succeeded == 1
        assert step(channel) == "EVALSHA"
        assert left(redis_db) == {"7"}


@pytest.mark.usefixtures("ripe")
@pytest.mark.parametrize("written", [True, False])
def test_ends_whose_answer_is_lost(written: bool, redis_db: RedisDB) -> None:
    with fetching(redis_db, "one", "two") as (channel, book, ledger):
        if not written:
            redis_db.client.client_pause(5000, all=False)
        channel._brpop_start()
        assert channel._fetch.kind == "END"
        if written:
            wait_until(lambda: ledger.status("batch").succeeded == 2)
        channel.client.connection.disconnect()
        channel._on_connection_disconnect(channel.client.connection)
        if not written:
            assert not redis_db.client.exists("graceful:batch:batch:succeeded")  # scripts wait
            redis_db.client.client_unpause()
        assert book.flush(TIMEOUT)
        assert ledger.status("batch").succeeded == 2
        assert left(redis_db) == set()


def test_what_is_not_taken_along(redis_db: RedisDB) -> None:
    store = broker_store(app_of(redis_db.url))
    assert store is not None
    ends = Ends(app_of(redis_db.url), lambda: None, lambda store, some: None)
    told = [END, CallbackEnd("batch", "on_success"), END]
    assert ends.along(store, told, ["me"] * 3, [1, 2, 3]).many == 1
    told = [END._replace(member="m\udcff")]
    assert ends.along(store, told, ["me"], [1]).many == 0


def answered(ends: Ends, answers: list[int]) -> Callable[[], bool]:
    def look() -> bool:
        ends.on_loop()
        return bool(answers)

    return look


def test_the_answer_follows_the_end(redis_db: RedisDB) -> None:
    app = app_of(redis_db.url)
    store, answers, due = broker_store(app), [], []
    assert store is not None
    ledger = batch_of(store, "member")
    ends = Ends(app, lambda: None, lambda store, some: due.extend(some))
    ends.note(END, then=lambda: answers.append(ledger.status("batch").pending))
    assert ends.busy
    wait_until(answered(ends, answers), "the answer")
    assert answers == [0]
    assert due == list[Due]()
    ends.end(TIMEOUT)
    assert not ends.busy


def test_what_is_just_being_taken_to_be_sent_is_waited_for(redis_db: RedisDB) -> None:
    """A drain that did not see it would end before the broker has its answer."""
    app = app_of(redis_db.url)
    store = broker_store(app)
    assert store is not None
    batch_of(store, "member")
    ends, answers, said = Ends(app, lambda: None, lambda store, some: None), [], []
    taken, go_on = threading.Event(), threading.Event()

    class Slow(deque[Any]):
        def popleft(self) -> Any:
            found = super().popleft()
            taken.set()
            assert go_on.wait(TIMEOUT)
            return found

    ends._noted = Slow()
    ends.note(END, then=lambda: answers.append(1))
    assert taken.wait(TIMEOUT)
    asks = threading.Thread(target=lambda: said.append(ends.busy))
    asks.start()
    asks.join(0.1)  # who does not wait for its turn has looked by then
    go_on.set()
    asks.join(TIMEOUT)
    assert said == [True]
    wait_until(answered(ends, answers), "the answer")
    ends.end(TIMEOUT)


def test_with_its_end_a_worker_hears_whether_a_batch_is_cancelled(redis_db: RedisDB) -> None:
    app = app_of(redis_db.url)
    store = broker_store(app)
    assert store is not None
    ledger = batch_of(store, "member", "another")
    ends = Ends(app, lambda: None, lambda store, some: None)
    known = known_of(app)
    assert known.age("batch") == math.inf
    ends.write(store, [(END, None)])
    first = known.age("batch")
    assert first < math.inf
    ledger.cancel("batch")
    ends.write(store, [(END._replace(member="another"), None)])
    assert known.age("batch") >= first


def test_a_store_that_is_away_holds_up_no_answer_for_long(
    start_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends_module, "PATIENCE", 0.5)
    server = start_server(RedisServer)
    with monkeypatch.context() as patch:  # who looks on waits for it
        has_patience(patch)
        store = broker_store(app_of(server.url()))
        assert store is not None
        ledger = batch_of(store, "member", "another")
    app = app_of(server.url())
    ends, answers = Ends(app, lambda: None, lambda store, some: None), []
    server.pause()
    try:
        ends.note(END, then=lambda: answers.append(1))
        wait_until(answered(ends, answers), "the answer")
        ends.note(END._replace(member="another"), then=lambda: answers.append(2))
        ends.on_loop()
        assert answers == [1, 2]
    finally:
        server.resume()
    wait_until(lambda: ledger.status("batch").succeeded == 2, "both")
    ends.end(TIMEOUT)


def test_without_a_store_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    app = Celery("acks", broker="memory://", set_as_current=False)
    ends, answers = Ends(app, lambda: None, lambda store, some: None), []
    ends.note(END, then=lambda: answers.append(1))
    ends.on_loop()
    assert answers == [1]
    assert not ends.busy


def test_what_a_claim_says_of_ends_is_text(redis_db: RedisDB) -> None:
    """A worker's connection answers in bytes."""
    app, due = app_of(redis_db.url), list[Due]()
    ends = Ends(app, lambda: None, lambda store, some: due.extend(some))
    store = broker_store(app)
    assert store is not None
    along = ends.along(store, [END], ["w"], [1])
    along.heard([[b"batch:on_complete"], [b"batch"]])
    assert due == [Due("batch", "on_complete")]


def test_what_is_acknowledged_early_is_not_gathered_for_long(
    claims: Claims, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the worker is killed its task, that has begun, is not to run again."""
    monkeypatch.setattr(sending_module, "GATHER", 600.0)
    for worker, number in (("me", 1), ("me", 2)):
        claims.ack(Tag(worker, number))
    assert left(redis_db) == {"1", "2", "3", "4"}, "gathered"
    early = Tag("me", 3)
    early.is_early = True
    claims.ack(early)
    wait_until(lambda: left(redis_db) == {"4"}, "it is sent, with those that wait")
    wait_until(lambda: not claims._sending._is_urgent, "nothing is urgent any more")
    claims.ack(Tag("me", 4))
    assert left(redis_db) == {"4"}, "gathered again"
