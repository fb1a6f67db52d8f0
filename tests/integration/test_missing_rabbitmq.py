"""RabbitMQ does not say what is in its queues, but how much: members are missing all the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from celery_graceful import Batch, Graceful, GracefulTask
from celery_graceful.batches import queues
from celery_graceful.batches.findings import Missing
from celery_graceful.batches.holders import Holder
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.missing import NOWHERE, Scan
from celery_graceful.batches.model import Due
from celery_graceful.batches.packing import pack
from celery_graceful.batches.queues import AGE
from celery_graceful.batches.routes import Routes
from celery_graceful.batches.whereabouts import whereabouts_of
from celery_graceful.claims.claimant import WORKERS, lease_key
from celery_graceful.claims.lease import about_key, broker_digest
from celery_graceful.messages.routing import DELAYED
from celery_graceful.operations import Operations
from celery_graceful.store.app_stores import find_store
from celery_graceful.store.start_note import note_of
from tests.conftest import RabbitVhost, RedisDB
from tests.support import operators
from tests.support.workers import TIMEOUT, wait_until


class Place:
    """An app, its ledger, and its queues."""

    def __init__(self, vhost: RabbitVhost, db: RedisDB) -> None:
        self.client, self.vhost = db.client, vhost
        self.app = Celery("missing", broker=vhost.url, set_as_current=False)
        self.app.conf.update(
            graceful_store=db.url, graceful_heartbeat_interval=0.05, graceful_lease_ttl=0.5
        )
        Graceful(self.app)

        @self.app.task(base=GracefulTask, name="one", shared=False)
        def one() -> None: ...

        @self.app.task(base=GracefulTask, name="elsewhere", queue="other", shared=False)
        def elsewhere() -> None: ...

        self.one, self.elsewhere = one, elsewhere
        store = find_store(self.app)
        assert store is not None
        self.store, self.ledger = store, BatchLedger(store)

    def batch(self, **members: Any) -> None:
        self.ledger.create("b", ttl=60, linger=60)
        self.ledger.begin_sending("b")
        self.ledger.add("b", [(name, pack(self.app, sig)) for name, sig in members.items()])
        self.ledger.sent("b")

    def missing(self) -> list[Missing]:
        routes = Routes(self.app, self.ledger)
        where = whereabouts_of(self.app, lambda seconds: None, routes.of)
        return Scan(self.ledger, where, lambda seconds: True, 0).look(["b"])["b"]

    def put(self, queue: str) -> None:
        with self.app.connection_for_write() as connection:
            connection.SimpleQueue(queue).put("something")
        wait_until(lambda: self.vhost.queue_length(queue))

    def living(self, worker: str) -> None:
        self.client.sadd(WORKERS, worker)
        self.client.set(lease_key(worker), "{}")
        self.client.set(about_key(worker), f'{{"broker": "{broker_digest(self.app)}"}}')


@pytest.fixture
def place(
    rabbit_vhost: RabbitVhost, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    monkeypatch.setattr(queues, "TIMEOUT", TIMEOUT)
    one = Place(rabbit_vhost, redis_db)
    yield one
    one.app.close()


def test_queues_that_are_empty(place: Place) -> None:
    """Or that do not exist."""
    place.batch(one=place.one.s(), two=place.elsewhere.s())
    assert place.missing() == [Missing("one", NOWHERE), Missing("two", NOWHERE)]


@pytest.mark.parametrize("queue", ["celery", "other", DELAYED[5]])
def test_queues_that_are_not(place: Place, queue: str) -> None:
    """It may be in there, for long; after an age it is said to be missing, perhaps."""
    place.batch(one=place.one.s(), two=place.elsewhere.s())
    place.put(queue)
    if queue in DELAYED:
        place.put(DELAYED[0])
    assert place.missing() == []
    moved = int(place.client.hget("graceful:batch:b", "moved") or 0)
    place.client.hset("graceful:batch:b", "moved", moved - int(AGE * 1000) - 10_000)
    found = place.missing()
    assert [(one.member, one.sure) for one in found] == [("one", False), ("two", False)]
    assert "is not empty" in found[0].why


def test_what_cannot_be_known_is_not_said_to_be_there(place: Place) -> None:
    """Some of a batch were lost, and its queue is not empty."""
    place.batch(one=place.one.s(), two=place.one.s())
    place.put("celery")
    said = operators.command(place.app, "batches", "resend", "b", status=1)
    assert said.splitlines() == [
        "b nothing done, whether 2 are missing cannot be known",
        "  celery is not empty (1 waits there), and RabbitMQ does not say what is in it",
        "  run it again when the queue is empty; --member M sends one wherever it is, --unsure all "
        "of them once the batch has stood still for 1 h",
    ]
    (done,) = operators.document(place.app, "Resent", "batches", "resend", "b", status=1)
    assert done["unknown"]["count"] == 2
    assert not Operations(place.app).batches.resend("b", unsure=True).is_well
    said = operators.command(place.app, "batches", "show", "b", "--look", status=1)
    assert "  unknown: whether 2 are missing: celery is not empty (1 waits there)" in said
    assert "batches resend b" not in said
    found = operators.document(place.app, "Batch", "batches", "show", "b", "--look", status=1)
    assert found["unknown"]["mend"] == "run it again when the queue is empty"
    assert operators.document(place.app, "Batch", "batches", "show", "b")["unknown"] is None
    command = "batches", "resend", "b", "--member", "one"
    (done,) = operators.document(place.app, "Resent", *command)
    assert (done["resent"], done["unknown"]) == (["one"], None)
    with place.app.connection_for_write() as connection:
        connection.default_channel.queue_purge("celery")
    place.client.delete("graceful:batch:b:resent")  # that was a while ago
    assert operators.command(place.app, "batches", "resend", "b") == "b 2 sent again\n"


def test_inside_of_a_batch_it_cannot_be_known_either(place: Place) -> None:
    place.put("celery")
    outer, inner = Batch(app=place.app), Batch(app=place.app, description="inner")
    inner.add(place.one.s())
    outer.apply_async([inner])
    said = operators.command(place.app, "batches", "resend", outer.id, status=1)
    assert f"{inner.id} nothing done, whether 1 is missing cannot be known" in said
    assert "none of its members is missing" not in said
    said = operators.command(place.app, "batches", "show", outer.id, "--look", status=1)
    assert "  unknown: whether 1 is missing: celery is not empty" in said


def test_a_callback_that_has_begun_may_be_in_a_queue(place: Place) -> None:
    """It would run twice."""
    batch = Batch(app=place.app, on_complete=place.one.si())
    batch.apply_async([place.elsewhere.s().set(task_id="one")])
    place.ledger.published(Due(batch.id, "on_complete"))
    place.ledger.may_run(batch.id, "on_complete", "a copy")
    place.put("celery")
    found = Operations(place.app).batches
    done = found.callback(batch.id, "on_complete")
    assert not done.ok
    assert "has begun, and whether it is lost cannot be known: celery is not empty" in done.said
    assert found.callback(batch.id, "on_complete", force=True).ok


def test_a_queue_that_none_of_them_is_sent_to(place: Place) -> None:
    place.put("somebodys")
    place.batch(one=place.one.s())
    assert place.missing() == [Missing("one", NOWHERE)]


def test_what_living_workers_hold(place: Place) -> None:
    place.batch(one=place.one.s(), two=place.one.s(), three=place.one.s(), four=place.one.s())
    place.living("w:1")
    Holder(place.store, lambda: ["b/one"], 10).say("w:1")
    place.client.set("graceful:started:two", "w:1|delivery")
    place.client.set("graceful:started:three", "=it has ended")
    assert place.missing() == [Missing("four", NOWHERE), Missing("three", NOWHERE)]
    place.client.set("graceful:started:three", note_of("w:2", "delivery", acks_late=False))
    assert place.missing() == [Missing("four", NOWHERE), Missing("three", NOWHERE)]
    place.client.set("graceful:started:three", note_of("w:1", "delivery", acks_late=False))
    place.client.set("graceful:started:four", note_of("w:2", "delivery", acks_late=True))
    assert place.missing() == [], "RabbitMQ may not have heard yet that its worker is gone"


def test_other_brokers_cannot_be_looked_into(redis_db: RedisDB) -> None:
    app = Celery("missing", broker="memory://", set_as_current=False)
    app.conf.graceful_store = redis_db.url
    Graceful(app)
    store = find_store(app)
    assert store is not None
    ledger = BatchLedger(store)
    ledger.create("b", ttl=60, linger=60)
    ledger.add("b", [("one", b"")])
    ledger.sent("b")
    where = whereabouts_of(app, lambda seconds: None, Routes(app, ledger).of)
    assert Scan(ledger, where, lambda seconds: True, 0).look(["b"]) == {"b": []}
    app.close()
