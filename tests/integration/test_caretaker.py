"""What workers do about missing members: one at a time, and nothing where nothing stands still."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery, Task, chain, chord, states
from kombu.exceptions import OperationalError

from celery_graceful import Batch, Graceful, GracefulTask
from celery_graceful.batches import caretaker as caretaker_module
from celery_graceful.batches import producers, sending
from celery_graceful.batches.callbacks import made
from celery_graceful.batches.caretaker import Caretaker
from celery_graceful.batches.caretaker_rounds import Rounds
from celery_graceful.batches.findings import Named, noted
from celery_graceful.batches.keys import INDEX, key_of
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.manual_remedies import CallbackRuns, Remedies
from celery_graceful.batches.marks import CALLBACK, callback_id
from celery_graceful.batches.model import Adds, Callback, Due, End, Outcome, Place, State
from celery_graceful.batches.packing import pack
from celery_graceful.batches.repair import Repair, Repaired
from celery_graceful.claims.claimant import WORKERS, claims_key, lease_key
from celery_graceful.operations import Operations
from celery_graceful.poison.quarantine import Kept, put
from celery_graceful.settings import Settings
from celery_graceful.store.app_stores import find_store
from tests.conftest import RedisDB
from tests.support import operators
from tests.support.workers import TIMEOUT

TUNED: dict[str, Any] = {
    "batch_missing_after": 0.1,
    "heartbeat_interval": 0.05,
    "lease_ttl": 0.5,
}


class Shop:
    """An app without workers, and a caretaker for its batches."""

    def __init__(self, db: RedisDB) -> None:
        self.client = db.client
        self.app = Celery("shop", broker=db.url, backend=db.backend_url, set_as_current=False)
        self.app.conf.update({f"graceful_{name}": value for name, value in TUNED.items()})
        Graceful(self.app)

        @self.app.task(base=GracefulTask, name="graceful", shared=False)
        def graceful(*args: Any) -> None: ...

        @self.app.task(base=Task, name="plain", shared=False)
        def plain(*args: Any) -> None: ...

        self.graceful, self.plain = graceful, plain
        store = find_store(self.app)
        assert store is not None
        self.ledger = BatchLedger(store)
        self.published: list[Due] = []
        self.told: list[tuple[str, Repaired]] = []
        self.told_cancelled: list[str] = []

    def batch(self, batch: str, _sent: bool = True, **members: Any) -> None:
        """All of whose members are missing."""
        callbacks = {
            name: made(self.app, batch, name, self.graceful.s())
            for name in ("on_complete", "on_success")
        }
        self.ledger.create(batch, ttl=60, linger=60, callbacks=callbacks)
        self.ledger.begin_sending(batch)
        self.ledger.add(batch, [(name, pack(self.app, sig)) for name, sig in members.items()])
        if _sent:
            self.ledger.sent(batch)

    def caretaker(self, **settings: Any) -> Caretaker:
        return Caretaker(
            self.app,
            Settings(**{**TUNED, **settings}),
            Repair(self.app, self.ledger, self.published.extend),
            lambda name: name == "graceful",
            threading.Event(),
            lambda batch, done: self.told.append((batch, done)),
            self.told_cancelled.extend,
        )

    def look(self, caretaker: Caretaker | None = None, **settings: Any) -> None:
        """When all have stood still for long enough."""
        time.sleep(0.05)
        self.client.delete("graceful:batches:look:", "graceful:batches:looked")
        (caretaker or self.caretaker(**settings)).look()

    def sent(self) -> list[dict[str, Any]]:
        """Headers of what is in the queue; it is taken out."""
        found = []
        while raw := self.client.rpop("celery"):
            found.append(json.loads(raw)["headers"])
        return found

    def runs(self, batch: str, name: str) -> None:
        """A callback has begun, with a worker that lives."""
        assert self.ledger.may_run(batch, name, "a copy")
        self.client.sadd(WORKERS, "w:1")
        self.client.set(lease_key("w:1"), "{}")
        headers = {CALLBACK: f"{batch}/{name}"}
        self.client.hset(claims_key("w:1"), "1", json.dumps({"headers": headers}))

    def missing(self, batch: str) -> dict[str, str]:
        return {one.member: one.why for one in noted(self.ledger, batch)}


@pytest.fixture
def shop(redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    for name in ("AT_WORK", "SILENT"):  # however long it stands still
        monkeypatch.setattr(caretaker_module, name, TIMEOUT)
    one = Shop(redis_db)
    yield one
    one.app.close()


def test_what_is_graceful_is_sent_again(shop: Shop) -> None:
    shop.batch("b", one=shop.graceful.s(1), two=shop.plain.s(2))
    shop.look()
    (headers,) = shop.sent()
    assert headers["id"] == "one"
    assert headers["graceful_batch"] == "b/one"
    assert headers["graceful_sent_again"] is True
    assert set(shop.missing("b")) == {"two"}
    assert shop.ledger.status("b").missing == 1
    ((batch, done),) = shop.told
    assert (batch, done.resent, list(done.left)) == ("b", ["one"], ["two"])


@pytest.mark.parametrize(("how", "sent"), [("resend", 2), ("fail", 0), ("off", 0)])
def test_as_it_is_set(shop: Shop, how: str, sent: int) -> None:
    shop.batch("b", one=shop.graceful.s(1), two=shop.plain.s(2))
    shop.look(batch_repair=how)
    assert len(shop.sent()) == sent
    status = shop.ledger.status("b")
    assert status.failed == (2 if how == "fail" else 0)
    assert status.missing == (2 if how == "off" else 0)
    assert shop.published == ([Due("b", "on_complete")] if how == "fail" else [])


@pytest.fixture
def other(shop: Shop) -> Iterator[Shop]:
    """Another app on the same Redis, which knows other tasks."""
    app = Celery("other", broker=shop.app.conf.broker_url, set_as_current=False)
    app.conf.update(result_backend=shop.app.conf.result_backend, task_default_queue="others")
    Graceful(app)

    @app.task(name="theirs", shared=False)
    def theirs() -> None: ...

    one = Shop.__new__(Shop)
    one.__dict__.update(vars(shop), app=app, plain=theirs, published=[], told=[])
    yield one
    app.close()


@pytest.mark.parametrize("how", [None, "resend", "fail", "off"])
def test_what_another_app_sends_is_left_to_it(shop: Shop, other: Shop, how: str | None) -> None:
    """Whatever is set there: it sends by its own routes. And it may look first."""
    shop.batch("b", one=shop.graceful.s(), two=chain(shop.plain.s(), other.plain.si()))
    shop.batch("unsent", one=shop.plain.s())
    shop.ledger.note_unsent("unsent", ["one"])
    settings = {"lease_ttl": 60, "batch_missing_after": 60}
    stranger = other.caretaker(batch_repair=how, **settings)
    caretaker = shop.caretaker(batch_repair="resend", **settings)
    shop.ledger.store.execute("ZADD", [INDEX], [0, "b", 0, "unsent"])
    stranger.look()
    assert set(shop.missing("b")) == {"one", "two"}, "it is listed all the same"
    assert not other.client.exists("others", "celery")
    assert (shop.ledger.status("b").pending, other.published) == (2, [])
    before = other.client.zrange("graceful:batches:looked", 0, -1, withscores=True)
    other.caretaker(batch_repair=how, **settings).look()
    after = other.client.zrange("graceful:batches:looked", 0, -1, withscores=True)
    assert before == after, "nobody looks again who knows no more"
    caretaker.look()
    sent = sorted(headers["graceful_batch"] for headers in shop.sent())
    assert sent == ["b/one", "b/two", "unsent/one"]
    assert not shop.missing("b")
    assert not other.client.exists("others")


def test_what_it_knows_of_a_batch_it_sends(shop: Shop, other: Shop) -> None:
    shop.batch("b", one=shop.plain.s(), two=other.plain.si())
    settings = {"batch_missing_after": 60, "batch_repair": "resend"}
    shop.ledger.store.execute("ZADD", [INDEX], [0, "b"])
    other.caretaker(**settings).look()
    assert [json.loads(raw)["headers"]["id"] for raw in other.client.lrange("others", 0, -1)] == [
        "two"
    ]
    shop.caretaker(**settings).look()
    assert [headers["id"] for headers in shop.sent()] == ["one"]
    assert other.client.llen("others") == 1


def test_callbacks_of_another_app(shop: Shop, other: Shop) -> None:
    """Also those that become due by what is found there: they stay in the outbox."""
    shop.batch("b", one=shop.plain.s())
    shop.ledger.end([End("b", "one", Outcome.SUCCEEDED)])
    due = [Due("b", "on_complete"), Due("b", "on_success")]
    told: list[Due] = []
    for app, expected in ((other.app, []), (shop.app, due)):
        rounds = Rounds(app, Settings(), "w", lambda store, some: told.extend(some), bool)
        rounds._publish(shop.ledger.store, due)
        assert told == expected
    assert {*shop.ledger.outbox(-1)} == {*due}
    for one in due:
        assert shop.ledger.published(one)
    other.look(batch_repair="resend")
    assert set(shop.missing("b")) == {"callback:on_complete", "callback:on_success"}
    assert not other.published
    shop.look(batch_repair="resend")
    assert {*shop.published} == {*due}


def test_what_ended_unseen_ends_as_its_result_says(shop: Shop) -> None:
    """In a worker without this package."""
    names = ("good", "bad", "revoked", "started")
    shop.batch("b", **{name: shop.plain.s() for name in names})
    backend = shop.app.backend
    backend.store_result("good", 1, states.SUCCESS)
    backend.store_result("bad", ValueError("no"), states.FAILURE)
    backend.store_result("revoked", ValueError("no"), states.REVOKED)
    backend.store_result("started", None, states.STARTED)
    shop.look()
    status = shop.ledger.status("b")
    assert (status.succeeded, status.failed, status.revoked) == (1, 1, 1)
    assert not shop.sent()
    assert set(shop.missing("b")) == {"started"}
    ((_, done),) = shop.told
    assert (set(done.ended), set(done.left)) == ({"good", "bad", "revoked"}, {"started"})


def test_what_is_in_quarantine_has_failed(shop: Shop) -> None:
    shop.batch("b", one=shop.graceful.s())
    raw = json.dumps(
        {
            "body": "",
            "headers": {"id": "one", "task": "graceful", "graceful_batch": "b/one"},
            "properties": {},
        }
    )
    kept = Kept("one", "graceful", "why", 3, 0, "w", {"list": "celery", "raw": raw})
    put(shop.ledger.store, kept)
    shop.look()
    assert shop.ledger.status("b").failed == 1
    assert not shop.sent()


def test_of_a_cancelled_batch_that_stands_still_workers_are_told_again(shop: Shop) -> None:
    """Some were away when they were told, or nobody told them."""
    for batch in ("a", "b", "c"):
        shop.batch(batch, **{f"of {batch}": shop.plain.s()})
    shop.ledger.cancel("b")
    shop.look()
    assert shop.told_cancelled == ["b"]


def test_a_cancelled_batch(shop: Shop) -> None:
    shop.batch("b", one=shop.graceful.s())
    shop.ledger.cancel("b")
    shop.look()
    assert shop.ledger.status("b").revoked == 1
    assert not shop.sent()


def test_a_producer_may_still_send(shop: Shop) -> None:
    shop.batch("b", _sent=False, one=shop.graceful.s())
    shop.look()
    assert set(shop.missing("b")) == {"one"}
    assert not shop.sent()


def test_a_producer_that_has_died_is_said_once(
    shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By all workers together; and once more of the next one."""

    def said() -> list[str]:
        shop.look(caretaker)
        shop.look()
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return [line for line in lines if "its producer" in line]

    caretaker = shop.caretaker()
    options = {"ttl": 60, "linger": 60, "key": "May", "description": "invoices"}
    shop.ledger.create("b", sender="s", **options)  # type: ignore[arg-type]
    shop.ledger.add("b", [("one", pack(shop.app, shop.graceful.s()))], sender="s")
    shop.ledger.create("kid", ttl=60, linger=60, parent="b", sender="s", place=Place("1", "s"))
    assert said() == [], "it was heard of"
    monkeypatch.setattr(producers, "LEFT_AFTER", 0.0)
    (line,) = said()
    assert line.startswith("Batch b (May, invoices) is not complete")
    assert re.search(r"was last heard of \d+ s ago, with 2 members sent, 2 of them pending", line)
    assert "Run it again with the key 'May', or cancel or drop it; if those are all of" in line
    assert line.endswith(": celery graceful batches resend b --close")
    assert said() == []
    shop.ledger.begin_sending("b", "t")
    shop.ledger.still_sends("b", "t", False)
    (line,) = said()
    assert "its producer has stopped, with" in line
    shop.ledger.sent("b")
    assert said() == []


def test_that_a_batch_was_looked_at_is_forgotten_when_nobody_looks_any_more(shop: Shop) -> None:
    shop.batch("b", one=shop.plain.s())
    shop.look()
    ((_, until),) = shop.client.zrange("graceful:batches:looked", 0, -1, withscores=True)
    left = shop.client.ttl("graceful:batches:looked")
    assert until - shop.client.time()[0] < left <= 3600


def test_chains_and_chords(shop: Shop) -> None:
    g, p = shop.graceful, shop.plain
    shop.batch(
        "b",
        chain=chain(g.si(1), g.si(2)),
        mixed=chain(g.si(1), p.si(2)),
        chord=chord([g.si(1), g.si(2)], g.s()),
    )
    shop.look()
    sent = shop.sent()
    assert len(sent) == 3
    assert {headers["graceful_batch"] for headers in sent} == {"b/chain", "b/chord"}
    ((_, done),) = shop.told
    assert set(done.left) == {"mixed"}


def test_a_lost_callback_is_sent_again(shop: Shop) -> None:
    shop.batch("b")
    for name in ("on_complete", "on_success"):
        assert shop.ledger.published(Due("b", name))
    shop.look()
    assert sorted(due.name for due in shop.published) == ["on_complete", "on_success"]
    assert sorted(shop.told[0][1].called) == [
        "callback:on_complete",
        "callback:on_success",
    ]


def test_a_callback_that_ended_unseen(shop: Shop) -> None:
    shop.batch("b")
    for name in ("on_complete", "on_success"):
        assert shop.ledger.published(Due("b", name))
    for name in ("on_complete", "on_success"):
        shop.app.backend.store_result(callback_id("b", name), 1, states.SUCCESS)
    shop.look()
    assert not shop.published
    assert shop.ledger.status("b").finished is not None


def test_what_cannot_be_sent_is_left_alone(shop: Shop) -> None:
    """And nothing else with it."""
    shop.batch("b", one=shop.graceful.s())
    shop.ledger.add("b", [("none", b""), ("broken", b"\xff\x00broken")], inside="one")
    shop.look()
    assert [headers["id"] for headers in shop.sent()] == ["one"]
    ((_, done),) = shop.told
    assert set(done.left) == {"none", "broken"}


def test_one_at_a_time(shop: Shop) -> None:
    shop.batch("b", **{f"m{number}": shop.graceful.s(number) for number in range(200)})
    time.sleep(0.05)
    several = [shop.caretaker() for _ in range(4)]
    threads = [threading.Thread(target=one.look) for one in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(shop.sent()) == 200
    assert len(shop.told) == 1


def test_who_stands_still_again_is_looked_at_later(shop: Shop) -> None:
    shop.batch("b", one=shop.graceful.s())
    for times in range(4):
        shop.look(batch_missing_after=1000)  # not yet
        assert not shop.sent()
        before = time.time()
        shop.look()
        assert len(shop.sent()) == 1
        until = float(shop.client.zscore("graceful:batches:looked", "b") or 0)
        assert before + 0.01 * 2**times < until < time.time() + 0.04 * 2**times


def test_where_nothing_stands_still_nothing_is_asked(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.batch("b", one=shop.graceful.s())
    asked: list[str] = []

    def spy(what: Callable[..., Any]) -> Callable[..., Any]:
        def call(name: str, *args: Any, **kwargs: Any) -> Any:
            asked.append(name)
            return what(name, *args, **kwargs)

        return call

    monkeypatch.setattr(caretaker_module, "PAUSE", 0.0)  # nothing that was known before
    caretaker = shop.caretaker(batch_missing_after=60)
    for name in ("run", "execute"):
        monkeypatch.setattr(caretaker.store, name, spy(getattr(caretaker.store, name)))
    caretaker.look()
    assert asked == ["EXISTS", "EXISTS", "batch_still"], "once more, to know which there is"
    shop.client.delete("graceful:batches")
    for _ in range(3):
        caretaker.look()
    assert asked[3:] == ["EXISTS"], "there was none: none can have stood still for a while"


def test_another_apps_batch(shop: Shop) -> None:
    """Whose messages are elsewhere: it is not looked at here."""
    shop.batch("b", one=shop.graceful.s())
    shop.client.hset("graceful:batch:b", "broker", "another")
    shop.look()
    assert not shop.missing("b")


def test_a_batch_inside_that_is_lost_has_failed(shop: Shop) -> None:
    shop.ledger.create("outer", ttl=60, linger=60)
    shop.ledger.create("kid", ttl=60, linger=60, parent="outer")
    shop.ledger.sent("outer")
    shop.client.delete("graceful:batch:kid")
    shop.look()
    assert shop.ledger.status("outer").failed == 1
    assert shop.ledger.status("outer").finished is not None


def test_an_outbox_that_was_lost(shop: Shop) -> None:
    shop.batch("b")
    shop.client.delete("graceful:batches:outbox")
    shop.look()
    assert sorted(due.name for due in shop.published) == ["on_complete", "on_success"]


def test_a_result_that_is_older_than_the_batch_is_of_another_task(shop: Shop) -> None:
    """An id of one's own, as ``page-1``, which another batch had as well."""
    shop.app.backend.store_result("page-1", 1, states.SUCCESS)
    time.sleep(0.01)
    shop.batch("b", **{"page-1": shop.graceful.s()})
    shop.look()
    assert shop.ledger.status("b").succeeded == 0
    assert [headers["id"] for headers in shop.sent()] == ["page-1"]


def test_it_is_listed_in_time_where_heartbeats_are_far_apart(shop: Shop) -> None:
    """What passes between the two halves of a look is part of ``graceful_batch_missing_after``."""
    shop.batch("b", one=shop.plain.s())
    shop.look(batch_missing_after=0.5, heartbeat_interval=0.3)
    assert set(shop.missing("b")) == {"one"}


def test_a_batch_that_has_failed_in_another(shop: Shop) -> None:
    shop.batch("b", _sent=False, one=shop.plain.s())
    shop.ledger.create("kid", ttl=60, linger=60, parent="b")
    shop.ledger.begin_sending("kid")
    shop.ledger.add("kid", [("two", pack(shop.app, shop.plain.s()))])
    shop.ledger.sent("kid")
    shop.ledger.sent("b")
    shop.ledger.complete("kid")
    remedies = Remedies(shop.app, shop.ledger, shop.published.extend)
    why = "it is a batch: mend that one (batches show kid)"
    assert remedies.resend("b", ["kid"]).left == {"kid": why}
    assert not remedies.resend("b", failed=True).left
    assert remedies.look_failed("b") == {"b": [], "kid": [Named("two")]}
    assert remedies.resend("kid", failed=True).resent == ["two"]


def test_one_that_has_failed_is_sent_again_when_somebody_says_so(shop: Shop) -> None:
    """Though there is a result, and that says so: it is known already."""
    shop.batch("b", one=shop.plain.s(), two=shop.plain.s())
    shop.app.backend.store_result("one", ValueError("no"), states.FAILURE)
    shop.ledger.end([End("b", "one", Outcome.FAILED), End("b", "two", Outcome.SUCCEEDED)])
    remedies = Remedies(shop.app, shop.ledger, shop.published.extend)
    done = remedies.resend("b", ["one", "two"])
    assert done.resent == ["one"]
    assert set(done.left) == {"two"}
    assert [headers["id"] for headers in shop.sent()] == ["one"]


def test_what_was_added_while_the_broker_was_away(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has run nowhere: a plain task is sent again by itself, once."""
    shop.batch("b", one=shop.graceful.s())
    added = shop.plain.si(), shop.plain.si().set(task_id="fixed")

    def add(*signatures: Any) -> None:
        task = sending.Sending(shop.app, shop.ledger, "b", inside="one", again=True, counted=False)
        task.all(signatures, Batch, lambda kid: None)

    with monkeypatch.context() as patch:
        patch.setattr(sending, "publish", Mock(side_effect=OperationalError("away")))
        with pytest.raises(OperationalError):
            add(*added)
    add(added[1])  # the task tries again
    assert [headers["id"] for headers in shop.sent()] == ["fixed"]
    shop.ledger.end([End("b", "one", Outcome.FAILED)])
    (member,) = set(shop.ledger.members_pending("b")) - {"fixed"}
    shop.look()
    assert [headers["id"] for headers in shop.sent()] == [member]
    shop.look()
    assert not shop.sent(), "what was sent may have run"
    assert shop.missing("b")
    shop.ledger.drop("b")
    assert not shop.client.keys("graceful:batch:b*")


def test_a_callback_that_runs_is_not_sent_by_hand(shop: Shop) -> None:
    """Unless it has not begun: of two the first runs; or it died with its worker."""
    shop.batch("b")
    remedies = Remedies(shop.app, shop.ledger, shop.published.extend)
    remedies._scan.pause = 0.0
    shop.ledger.published(Due("b", "on_complete"))
    assert remedies.callback("b", "on_complete")
    shop.ledger.published(Due("b", "on_complete"))
    shop.runs("b", "on_complete")
    with pytest.raises(CallbackRuns):
        remedies.callback("b", "on_complete")
    assert remedies.callback("b", "on_complete", force=True)
    shop.ledger.published(Due("b", "on_complete"))
    shop.ledger.may_run("b", "on_complete", "a copy")
    shop.client.delete(claims_key("w:1"))
    assert remedies.callback("b", "on_complete")


class TestFromAShell:
    @pytest.fixture
    def command(self, redis_db: RedisDB) -> Callable[..., str]:
        app = Celery("ghost", broker=redis_db.url, set_as_current=False)
        app.conf.update({f"graceful_{name}": value for name, value in TUNED.items()})
        Graceful(app)

        def run(*args: str, status: int = 0) -> str:
            return operators.command(app, "batches", *args, status=status)

        return run

    def test_a_producer_that_has_died(self, shop: Shop, command: Callable[..., str]) -> None:
        shop.batch("b", _sent=False, one=shop.graceful.s())
        assert "sending: 1 of 1 pending" in command("list", status=1)
        for line in (["show", "b"], ["show", "b", "--look"]):
            hint = command(*line, status=1).splitlines()[-1]
            assert hint.endswith("batches resend --close b"), line
        assert "--close" in command("resend", "b", status=1)
        assert [headers["id"] for headers in shop.sent()] == ["one"]
        (done,) = json.loads(command("resend", "b", "--close", "--json"))
        assert (done["resent"], done["closed"], done["sending"]) == (["one"], True, False)
        assert shop.ledger.status("b").state == "sent"

    def test_whether_a_producer_lives(
        self, shop: Shop, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shop.batch("sent", one=shop.graceful.s())
        shop.ledger.create("b", ttl=60, linger=60, sender="s", key="May")
        assert "left by" not in command("list")
        assert command("list", "--left").strip() == "no producer has left one"
        shown = command("show", "b").splitlines()
        assert any(line.startswith("  producer: heard of at ") for line in shown)
        assert "if its producer is dead: run it again with the key 'May', or, if" in shown[-1]
        (alive,) = json.loads(command("show", "b", "--json").join("[]"))
        assert (alive["left"], alive["heard"] > 0) == (False, True)
        monkeypatch.setattr(producers, "LEFT_AFTER", 0.0)
        assert "not heard of since" in command("show", "b", status=1)
        shop.ledger.still_sends("b", "s", False)
        monkeypatch.undo()
        assert "producer: has failed" in command("show", "b", status=1)
        assert "  -> run it again" in command("show", "b", status=1)
        listed = command("list", status=1)
        assert listed.count("left by its producer") == 1
        (left,) = json.loads(command("list", "--left", "--json", status=1))
        assert (left["id"], left["left"], left["heard"]) == ("b", True, None)
        assert json.loads(command("list", "--missing", "--json")) == []
        (told,) = (f for f in Operations(shop.app).status().findings if "batches" in f.mend)
        assert (told.what[:17], told.mend) == ("1 batch sent in p", "batches list --left")
        assert Operations(shop.app).status().batches_left == ("b",)

    def test_by_its_key(self, shop: Shop, command: Callable[..., str]) -> None:
        shop.ledger.create("b", ttl=60, linger=60, key="May 5", callbacks={})
        shop.ledger.create("of key b", ttl=60, linger=60, key="b")
        shop.ledger.add("b", [("one", pack(shop.app, shop.graceful.s()))])
        assert json.loads(command("show", "May 5", "--json"))["id"] == "b"
        assert json.loads(command("show", "b", "--json"))["id"] == "b", "an id goes before a key"
        assert command("show", "May 5").splitlines()[-1].endswith("batches show --look b")
        assert "b: there is no on_success" in command("callback", "May 5", "on_success", status=1)
        assert "b 1 sent again" in command("resend", "May 5", "b", "--member", "one")
        assert command("complete", "May 5", "--yes") == "b completed\n"
        assert command("drop", "May 5", "b", "--yes") == "b dropped\n"
        assert "there is no batch" in command("show", "May 5", status=1)
        assert json.loads(command("show", "b", "--json"))["id"] == "of key b"

    def test_a_producer_that_has_died_when_all_had_ended(
        self, shop: Shop, command: Callable[..., str]
    ) -> None:
        shop.batch("b", _sent=False, one=shop.graceful.s())
        shop.ledger.end([End("b", "one", Outcome.SUCCEEDED)])
        assert command("resend", "b", "--close") == "b complete with the members that it has\n"
        assert command("resend", "b", "--close").startswith("b nothing done\n")

    def test_those_that_have_failed(self, shop: Shop, command: Callable[..., str]) -> None:
        shop.batch("b", one=shop.plain.s(), two=shop.plain.s(), three=shop.plain.s())
        assert "none of its members has failed" in command("resend", "b", "--failed")
        how = {"one": Outcome.FAILED, "two": Outcome.SUCCEEDED}
        shop.ledger.end([End("b", member, outcome) for member, outcome in how.items()])
        assert command("resend", "b", "--failed") == "b 1 sent again\n"
        assert [headers["id"] for headers in shop.sent()] == ["one"]

    def test_what_was_sent_again_is_not_missing(
        self, shop: Shop, command: Callable[..., str]
    ) -> None:
        shop.batch("b", one=shop.plain.s(), two=shop.plain.s())
        assert "2 missing" in command("show", "b", "--look", status=1)
        command("resend", "b", "--member", "one")
        assert set(shop.missing("b")) == {"two"}
        assert shop.ledger.status("b").missing == 1

    def test_a_callback_that_is_missing(self, shop: Shop, command: Callable[..., str]) -> None:
        shop.batch("b", one=shop.graceful.s())
        shop.ledger.end([End("b", "one", Outcome.SUCCEEDED)])
        for name in ("on_complete", "on_success"):
            assert shop.ledger.published(Due("b", name))
        assert "2 missing" in command("show", "b", "--look", status=1)
        assert "callback:on_success  in no queue" in command("show", "b", status=1)
        (listed,) = json.loads(command("list", "--missing", "--json", status=1))
        assert listed["missing"] == 2

    def test_remedies(self, shop: Shop, command: Callable[..., str]) -> None:
        shop.batch("b", one=shop.graceful.s())
        assert "one  graceful  in no queue" in command("show", "b", "--look", status=1)
        (listed,) = json.loads(command("list", "--missing", "--json", status=1))
        assert (listed["missing"], listed["missing_members"][0]["member"]) == (1, "one")
        assert command("callback", "b", "on_complete", "--force") == "b on_complete sent\n"
        assert [headers["graceful_batch_callback"] for headers in shop.sent()] == ["b/on_complete"]
        shop.runs("b", "on_complete")
        assert "it would run twice; --force" in command("callback", "b", "on_complete", status=1)
        said = command("complete", "nothing", "b", "--yes", status=1)
        assert "there is no batch 'nothing'" in said
        assert said.endswith("b completed\n"), "one that there is not keeps none of the others"
        assert json.loads(command("show", "b", "--json"))["failed"] == 1
        assert command("drop", "b", "--yes") == "b dropped\n"
        assert "there is no batch 'b'" in command("show", "b", status=1)
        assert "no batch is unfinished" in command("list")


def test_what_has_expired_was_revoked(shop: Shop) -> None:
    """RabbitMQ drops it in its queue: no worker hears of it."""
    past = datetime.now(timezone.utc) - timedelta(seconds=5)
    late = shop.graceful.si().set(expires=past)
    shop.batch(
        "b",
        one=shop.plain.s().set(expires=past),
        two=shop.graceful.s().set(expires=past),
        chain=chain(shop.graceful.si(), late, shop.graceful.si()),
        chord=chord([shop.graceful.si(), shop.graceful.si()], late),
    )
    shop.look()
    assert shop.ledger.status("b").revoked == 4
    assert not shop.sent()


def test_a_callback_that_has_expired_has_ended(shop: Shop) -> None:
    """Seconds count from when it was sent at the latest."""
    past = datetime.now(timezone.utc) - timedelta(seconds=5)
    late = shop.graceful.si().set(expires=past)
    given = {
        "on_complete": chain(shop.graceful.si(), late),
        "on_success": shop.graceful.si().set(expires=0.01),
        "on_failure": shop.graceful.si().set(expires=60),
    }
    callbacks = {name: made(shop.app, "b", name, sig) for name, sig in given.items()}
    shop.ledger.create("b", ttl=60, linger=60, callbacks=callbacks)
    shop.ledger.begin_sending("b")
    shop.ledger.sent("b")
    shop.ledger.fire("b", "on_failure")
    for name in given:
        assert shop.ledger.published(Due("b", name))
    shop.look()
    ((_, done),) = shop.told
    assert set(done.ended) == {"callback:on_complete", "callback:on_success"}
    assert done.called == ["callback:on_failure"]


def test_the_lost_body_of_a_chord(shop: Shop) -> None:
    """It is not kept as other callbacks are; what it is given may have gone by now."""
    backend: Any = shop.app.backend
    backend.set_chord_size("kept", 1)
    for batch, task in (("b", shop.graceful), ("c", shop.plain), ("kept", shop.graceful)):
        packed = base64.b64encode(pack(shop.app, task.s())).decode()
        body = Callback(f"body of {batch}", {"packed": packed}, False, gathers=True)
        shop.ledger.create(batch, ttl=60, linger=60, callbacks={"on_complete": body})
        shop.ledger.begin_sending(batch)
        shop.ledger.sent(batch)
        assert shop.ledger.published(Due(batch, "on_complete"))
    shop.look()
    told = dict(shop.told)
    assert told["b"].failed == told["kept"].called == ["callback:on_complete"]
    assert told["b"].called == told["kept"].failed == []
    assert "c" not in told or list(told["c"].left) == ["callback:on_complete"]
    assert {*shop.published} == {Due("b", "on_complete"), Due("kept", "on_complete")}


@pytest.mark.parametrize("how", [None, "off"])
def test_what_a_task_was_adding_that_has_ended(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str | None
) -> None:
    """It failed for good, or adds something else now: nobody sends the rest of it."""
    monkeypatch.setattr(caretaker_module, "SILENT", 0.0)
    shop.batch("outer", adds=shop.graceful.s(), other=shop.graceful.s())
    adds = {"sender": "s", "adds": Adds("task", "like", "run")}
    shop.ledger.create("kid", ttl=60, linger=60, parent="outer", inside="adds", **adds)
    shop.ledger.create("deep", ttl=60, linger=60, parent="kid", **adds)
    shop.ledger.add("kid", [("one", b"")])
    shop.look(batch_repair="off")
    assert shop.ledger.status("kid").state is State.SENDING, "its task has not ended"
    shop.ledger.end([End("outer", "adds", Outcome.FAILED)])
    caretaker = shop.caretaker(batch_repair=how)
    for _ in range(2):
        shop.look(caretaker)
    said = caplog.text.count(
        "Batch kid: nobody sends the rest of it, since the task that was adding"
    )
    assert said == 1
    if how == "off":
        assert shop.ledger.status("kid").state is State.SENDING
        return
    for batch in ("kid", "deep"):
        assert shop.ledger.status(batch).state is State.CANCELLED
    assert not [name for name in shop.client.hkeys(key_of("outer")) if name.startswith("adding")]
    due = shop.ledger.end([End("outer", "other", Outcome.SUCCEEDED)])
    status = shop.ledger.status("outer")
    assert (status.pending, status.failed, status.revoked, status.succeeded) == (0, 1, 1, 1)
    assert due == [Due("outer", "on_complete")]


@pytest.mark.parametrize("how", ["sent", "complete", "drop"])
def test_a_batch_inside_of_one_that_was_sent_without_it(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its producer died, and the outer one was said to be complete: that would wait for ever."""
    monkeypatch.setattr(caretaker_module, "SILENT", 0.0)
    shop.batch("outer", _sent=False, one=shop.graceful.s())
    place = Place("1 like", "")
    shop.ledger.create("kid", ttl=60, linger=60, parent="outer", sender="s", place=place)
    shop.look()
    assert shop.ledger.status("kid").state is State.SENDING, "somebody may go on with it"
    getattr(shop.ledger, how)("outer")
    shop.look()
    assert shop.ledger.status("kid").state is State.CANCELLED
    if how != "sent":
        return
    shop.ledger.end([End("outer", "one", Outcome.SUCCEEDED)])
    assert (shop.ledger.status("outer").pending, shop.ledger.status("outer").revoked) == (0, 1)


def test_who_adds_and_is_heard_of_is_left_alone(shop: Shop) -> None:
    shop.batch("outer", adds=shop.graceful.s())
    adds = {"sender": "s", "adds": Adds("task", "like", "run")}
    shop.ledger.create("kid", ttl=60, linger=60, parent="outer", inside="adds", **adds)
    shop.ledger.end([End("outer", "adds", Outcome.FAILED)])
    shop.look()
    assert shop.ledger.status("kid").state is State.SENDING
