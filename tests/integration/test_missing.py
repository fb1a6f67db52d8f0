"""Members of batches are found wherever a message can be, and missing where it is nowhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from celery_graceful import Graceful
from celery_graceful.batches.findings import Missing, note, noted
from celery_graceful.batches.holders import Holder
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.missing import Scan
from celery_graceful.batches.model import Callback, Due, End, Outcome
from celery_graceful.batches.routes import Routes
from celery_graceful.batches.whereabouts import whereabouts_of
from celery_graceful.claims.claimant import FALLEN, WORKERS, claims_key, lease_key
from celery_graceful.store.app_stores import find_store
from celery_graceful.unusable.waiting import Kind, Stray, WaitingRoom
from tests.conftest import RedisDB
from tests.support.json_forms import AWKWARD, forms_of


class Place:
    """An app, its ledger, and messages put by hand into wherever they can be."""

    def __init__(self, db: RedisDB, **options: Any) -> None:
        self.client = db.client
        self.app = Celery("missing", broker=db.url, backend=db.backend_url, set_as_current=False)
        self.app.conf.update(options)
        Graceful(self.app)
        store = find_store(self.app)
        assert store is not None
        self.store, self.ledger = store, BatchLedger(store)
        self.moves: list[Any] = []
        self.prefix = store.prefix

    def batch(self, batch: str, *members: str, **options: Any) -> None:
        self.ledger.create(batch, ttl=60, linger=60, **options)
        self.ledger.begin_sending(batch)
        self.ledger.add(batch, [(member, b"") for member in members])
        self.ledger.sent(batch)

    def scan(self) -> Scan:
        def wait(seconds: float) -> bool:
            for move in self.moves:
                move()
            return True

        routes = Routes(self.app, self.ledger)
        where = whereabouts_of(self.app, lambda seconds: None, routes.of)
        return Scan(self.ledger, where, wait, 0)

    def missing(self, *batches: str) -> dict[str, list[str]]:
        found = self.scan().look(batches)
        return {batch: sorted(one.member for one in some) for batch, some in found.items()}


def message(batch: str, member: str, header: str = "graceful_batch", **headers: Any) -> str:
    """As kombu writes it."""
    return json.dumps(
        {
            "body": "W1tdLCB7fSwge31d",
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"id": "x", "task": "t", **headers, header: f"{batch}/{member}"},
            "properties": {"body_encoding": "base64", "delivery_info": {}, "delivery_tag": "1"},
        }
    )


@pytest.fixture(params=["", "some*[prefix]"])
def place(redis_db: RedisDB, request: pytest.FixtureRequest) -> Iterator[Place]:
    one = Place(redis_db, broker_transport_options={"global_keyprefix": request.param})
    yield one
    one.app.close()


def test_every_place(place: Place) -> None:
    prefix, client = place.prefix, place.client
    homes = ["queue", "priority", "other", "claim", "fallen", "unacked", "waits", "copy", "held"]
    place.batch("b", *homes, "nowhere")
    client.lpush(f"{prefix}celery", *["no message"] * 50, message("b", "queue"), *["{}"] * 700)
    client.lpush(f"{prefix}celery\x06\x163", message("b", "priority"))
    client.lpush(f"{prefix}somebodys", message("b", "other"))
    for worker, key, member in (("w:1", WORKERS, "claim"), ("w:2", FALLEN, "fallen")):
        client.sadd(prefix + key, worker)
        client.hset(prefix + claims_key(worker), "1", f"celery\0{message('b', member)}")
    entry = json.dumps([json.loads(message("b", "unacked")), "", "celery"])
    client.hset(f"{prefix}unacked", "tag", entry)
    client.set(f"{prefix}celery\x06\x169", "of another type")
    client.sadd(f"{prefix}graceful:waiting:messages:no", "none")
    client.hset(prefix + claims_key("w:1"), "2", f"{prefix}celery\0{message('b', 'waits')}")
    room = WaitingRoom(place.store)
    assert room.wait("w:1", 60, [Stray("x", Kind("", "t"), "2")]) == ["waits"]
    from celery_graceful.claims.lease import broker_digest

    copies = WaitingRoom(place.store, broker_digest(place.app))
    kept = json.dumps({"message": json.loads(message("b", "copy"))})
    assert copies.wait("", 60, [Stray("y", Kind("celery", "t"), "", kept)]) == ["waits"]
    client.set(prefix + lease_key("w:1"), "{}")
    Holder(place.store, lambda: ["b/held"], 10).say("w:1")
    assert place.missing("b") == {"b": ["nowhere"]}


@pytest.mark.parametrize("member", AWKWARD)
def test_a_member_is_found_however_its_id_is_written(place: Place, member: str) -> None:
    """In a list, in a hash, and in JSON that is a string of JSON, by any producer."""
    prefix, client = place.prefix, place.client
    place.batch("b", member, "nowhere")
    for form, written in forms_of(f"b/{member}").items():
        text = message("b", "PUT HERE").replace('"b/PUT HERE"', written)
        assert json.loads(text)["headers"]["graceful_batch"] == f"b/{member}"
        for level in range(3):
            client.lpush(f"{prefix}celery", text)
            assert place.missing("b") == {"b": ["nowhere"]}, (form, level, "list")
            client.delete(f"{prefix}celery")
            client.hset(f"{prefix}unacked", "tag", text)
            assert place.missing("b") == {"b": ["nowhere"]}, (form, level, "hash")
            client.delete(f"{prefix}unacked")
            text = json.dumps({"kept": text}, ensure_ascii=level % 2 == 0)


def test_what_a_dead_worker_said_does_not_count(place: Place) -> None:
    place.batch("b", "one")
    place.client.sadd(place.prefix + WORKERS, "w:1")
    Holder(place.store, lambda: ["b/one"], 10).say("w:1")
    assert place.missing("b") == {"b": ["one"]}


def test_a_holder_says_what_changes(place: Place) -> None:
    held = {f"b/{number}" for number in range(1200)}
    holder = Holder(place.store, lambda: held, 10)
    key = f"{place.prefix}graceful:aboard:w:1"

    def said() -> set[str]:
        return {str(member) for member in place.client.smembers(key)}

    holder.say("w:1")
    assert said() == held
    assert place.client.pttl(key) > 90_000
    held -= {"b/0", "b/1"}
    held.add("b/new")
    holder.say("w:1")
    assert said() == held
    place.client.delete(key)
    holder.say("w:1")
    assert said() == held, "Redis has lost it"
    held.clear()
    holder.say("w:1")
    assert not said()
    holder.say("w:1")
    held.add("b/1")
    holder.say("w:2")
    assert not said(), "it is another one now"


def test_what_moves_or_ends_meanwhile_is_not_missing(place: Place) -> None:
    place.batch("b", "moves", "ends", "stays", "added")
    place.client.lpush(f"{place.prefix}celery", message("b", "added"))
    place.moves = [
        lambda: place.client.lpush(f"{place.prefix}any", message("b", "moves")),
        lambda: place.ledger.end([End("b", "ends", Outcome.FAILED)]),
    ]
    assert place.missing("b") == {"b": ["stays"]}


def test_a_batch_inside(place: Place) -> None:
    """It is no message; what is inside of it is looked for by itself."""
    place.ledger.create("outer", ttl=60, linger=60)
    place.ledger.create("kid", ttl=60, linger=60, parent="outer")
    place.ledger.create("gone", ttl=60, linger=60, parent="outer")
    place.ledger.add("kid", [("one", b"")])
    place.ledger.sent("kid")
    place.ledger.sent("outer")
    place.client.delete(f"{place.prefix}graceful:batch:gone")
    assert place.missing("outer", "kid") == {"outer": ["gone"], "kid": ["one"]}


def test_a_callback(place: Place) -> None:
    callback = Callback("id", {"task": "t"})
    place.batch("b", callbacks={"on_success": callback, "on_complete": callback})
    assert place.missing("b") == {"b": []}, "they are due"
    for name in ("on_complete", "on_success"):
        assert place.ledger.published(Due("b", name))
    place.client.lpush(
        f"{place.prefix}celery", message("b", "on_success", "graceful_batch_callback")
    )
    assert place.missing("b") == {"b": ["callback:on_complete"]}
    place.ledger.callback_ended("b", "on_complete")
    assert place.missing("b") == {"b": []}


def test_a_long_queue(place: Place) -> None:
    client = place.client
    members = [f"m{number:05}" for number in range(20_000)]
    place.batch("b", *members, "nowhere")
    client.lpush(f"{place.prefix}celery", *[message("b", m, pad="x" * 500) for m in members])
    client.lpush(f"{place.prefix}celery", *[message("b", "none", pad="x" * 1_000_000)] * 20)
    assert place.missing("b") == {"b": ["nowhere"]}


def test_what_was_found_is_known_until_it_ends(place: Place) -> None:
    members = [f"m{number}" for number in range(1200)]
    place.batch("b", *members)
    note(place.ledger, "b", [Missing(member, "why", True) for member in members], 60)
    assert sorted(one.member for one in noted(place.ledger, "b")) == sorted(members)
    assert place.ledger.status("b").missing == 1200
    place.ledger.end([End("b", "m1", Outcome.FAILED)])
    assert len(list(noted(place.ledger, "b"))) == 1199
    note(place.ledger, "b", [Missing("m2", "why", False)], 60)
    assert list(noted(place.ledger, "b")) == [Missing("m2", "why", False)]
    assert place.client.pttl(f"{place.prefix}graceful:batch:b:missing") > 0
    note(place.ledger, "b", [], 60)
    assert not list(noted(place.ledger, "b"))
