"""Ends of members on their way: with acknowledgements, before them, and while a store is away."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from celery import Celery

from celery_graceful.batches import ends as ends_module
from celery_graceful.batches.cancellations import known_of
from celery_graceful.batches.ends import Ends
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.member_part import CallbackEnd
from celery_graceful.batches.model import Due, End, Outcome
from celery_graceful.claims import acks as acks_module
from celery_graceful.claims.acks import Acks
from celery_graceful.claims.held_claims import Claims
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
    assert written == [acks_module.MANY_ENDS]
    acks.send_ends(at_once=True)
    assert written == [acks_module.MANY_ENDS, 1]


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


def claim_and_end(
    redis_db: RedisDB, *members: str, broken: str = ""
) -> tuple[Any, Any, BatchLedger]:
    """What a claim takes, and what it answers of ends that it takes along."""
    store = broker_store(app_of(redis_db.url))
    assert store is not None
    ledger = batch_of(store, *members)
    if broken:
        redis_db.client.set(broken, "is no set")
    redis_db.client.sadd("graceful:workers", "me")
    redis_db.client.rpush("celery", "a message")
    claims = {str(number): "celery\0{}" for number, _ in enumerate(members)}
    redis_db.client.hset("graceful:claims:me", mapping=claims)
    ends = Ends(app_of(redis_db.url), lambda: None, lambda store, some: None)
    told = [END._replace(member=member) for member in members]
    along = ends.along(store, told, ["me"] * len(members), range(len(members)))
    assert along.many == len(members)
    keys = [*along.keys, "graceful:workers", "graceful:claims:me", "bell", "celery"]
    arguments = [*along.arguments, "me", 7, 2, 1, "in order"]
    taken, answer = store.run("claim_and_end", keys, arguments)
    if not isinstance(answer, str):
        along.heard(answer)
        assert known_of(ends.app).age("batch") < math.inf
    return taken, answer, ledger


def test_a_claim_takes_ends_along_in_its_step(redis_db: RedisDB) -> None:
    taken, answer, ledger = claim_and_end(redis_db, "one", "two")
    assert (taken, answer) == ([4, "a message"], [[], ["batch"]])
    assert ledger.status("batch").succeeded == 2
    assert redis_db.client.hgetall("graceful:claims:me") == {"7": "celery\0a message"}


def test_ends_that_fail_keep_nobody_from_claiming(redis_db: RedisDB) -> None:
    """And their messages stay claimed."""
    broken = "graceful:batch:batch:succeeded"
    taken, answer, _ = claim_and_end(redis_db, "one", "two", broken=broken)
    assert taken == [4, "a message"]
    assert "WRONGTYPE" in answer
    assert left(redis_db) == {"0", "1", "7"}


def test_what_a_claim_does_not_take_along(redis_db: RedisDB) -> None:
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
