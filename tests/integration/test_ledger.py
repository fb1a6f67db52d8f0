"""The ledger of batches, against a real Redis: ends, callbacks, parents, time to live."""

from __future__ import annotations

import json
import uuid

import pytest
import redis
from celery import Celery

from celery_graceful import BatchFinished, UnknownBatch
from celery_graceful.batches.ledger import ANY, BatchLedger
from celery_graceful.batches.model import CALLBACKS, Callback, Due, End, Outcome, State
from celery_graceful.store.app_stores import find_store

SUCCEEDED, FAILED, REVOKED = Outcome


def callback(name):
    return Callback(f"id of {name}", {"task": name, "args": [name]}, takes_summary=True)


class Bench:
    def __init__(self, db):
        app = Celery(uuid.uuid4().hex, broker="memory://", set_as_current=False)
        app.conf.graceful_store = db.url
        app.conf.graceful_store_options = {"global_keyprefix": "p:"}
        self.redis = db.client
        self.ledger = BatchLedger(find_store(app))

    def create(self, name="b", callbacks=CALLBACKS, **options):
        options = {"ttl": 1000, "linger": 30, **options}
        self.ledger.create(name, callbacks={one: callback(one) for one in callbacks}, **options)
        return name

    def add(self, *members, batch="b", **options):
        return self.ledger.add(batch, [(m, m.encode() * 3) for m in members], **options)

    def sent(self, *members, batch="b", **options):
        self.create(batch, **options)
        self.ledger.begin_sending(batch)
        self.add(*members, batch=batch)
        return self.ledger.sent(batch)

    def end(self, outcome, *members, batch="b"):
        due = self.ledger.end([End(batch, member, outcome) for member in members])
        return [one.name if one.batch == "b" else tuple(one) for one in due]

    def ended(self, *names, batch="b"):
        due = []
        for name in names:
            self.ledger.published(Due(batch, name))
            due += self.ledger.callback_ended(batch, name)
        return due

    def counts(self, batch="b"):
        status = self.ledger.status(batch)
        assert status.pending == self.redis.scard(f"p:graceful:batch:{batch}:pending")
        return status.pending, status.succeeded, status.failed, status.revoked

    def ttl(self, batch="b"):
        return self.redis.ttl(f"p:graceful:batch:{batch}")


@pytest.fixture
def bench(redis_db):
    bench = Bench(redis_db)
    yield bench
    keys = redis_db.client.keys("*")
    assert all(key.startswith("p:graceful:") for key in keys)
    assert [key for key in keys if redis_db.client.pttl(key) < 0] == []


def test_a_life(bench):
    assert bench.sent("x", "y", description="two", properties={"month": "May"}) == []
    assert bench.counts() == (2, 0, 0, 0)
    assert bench.ledger.stood_still(0) == ["b"]
    assert bench.end(SUCCEEDED, "x") == []
    assert bench.end(SUCCEEDED, "y") == ["on_complete", "on_success"]
    assert bench.end(SUCCEEDED, "x", "y") == bench.end(FAILED, "y") == []
    status = bench.ledger.status("b")
    assert (status.description, status.properties) == ("two", {"month": "May"})
    assert status.state is State.SENT
    assert status.callbacks == {
        "on_complete": "due",
        "on_failure": "waiting",
        "on_success": "due",
    }
    assert sorted(bench.ledger.outbox()) == [("b", "on_complete"), ("b", "on_success")]
    assert bench.ledger.callback(Due("b", "on_success")) == callback("on_success")
    assert bench.ledger.published(Due("b", "on_success"))
    assert not bench.ledger.published(Due("b", "on_success"))
    assert bench.ledger.callback_ended("b", "on_success") == []
    assert bench.ledger.status("b").finished is None
    bench.ended("on_complete")
    status = bench.ledger.status("b")
    assert status.state is State.DONE
    assert status.finished >= status.created > 1.7e9
    assert status.summary()["succeeded"] == 2
    assert bench.counts() == (0, 2, 0, 0)
    assert 0 < bench.ttl() <= 30
    assert bench.redis.keys("*") == ["p:graceful:batch:b"]


def test_its_keys_live_on_with_each_end(bench):
    """But for a moment, in which many members end."""
    bench.sent("x", "y", "z")
    keys = sorted(bench.redis.keys("p:graceful:batch:b*"))
    lives = [bench.redis.pttl(key) for key in keys]
    for key in keys:
        bench.redis.pexpire(key, bench.redis.pttl(key) - 20_000)
    assert bench.end(SUCCEEDED, "x") == []
    succeeded = "p:graceful:batch:b:succeeded"
    assert succeeded not in keys
    assert sorted(bench.redis.keys("p:graceful:batch:b*")) == sorted([*keys, succeeded])
    for key, life in zip(keys, lives, strict=True):
        assert bench.redis.pttl(key) > life - 15_000
    assert bench.redis.pttl(succeeded) > bench.redis.pttl("p:graceful:batch:b")
    bench.redis.pexpire("p:graceful:batch:b", bench.redis.pttl("p:graceful:batch:b") - 20_000)
    assert bench.end(SUCCEEDED, "y") == []
    assert bench.redis.pttl("p:graceful:batch:b") > lives[0] - 15_000


@pytest.mark.parametrize("members", [["x"], ["x", "y"]])
def test_members_end_in_a_redis_that_is_full(bench, members):
    """What makes room there is tasks that end."""
    bench.sent("x", "y", "z")
    bench.redis.config_set("maxmemory-policy", "noeviction")
    bench.redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            bench.redis.set("p:graceful:any", "x")
        bench.end(SUCCEEDED, *members)
        assert bench.end(FAILED, "z") == ["on_failure"] + ["on_complete"] * (len(members) > 1)
    finally:
        bench.redis.config_set("maxmemory", "0")
    assert bench.counts() == (2 - len(members), len(members), 1, 0)


def test_members_that_end_together_are_told_apart(bench):
    bench.sent("a", "b", "c", "d", "e")
    bench.end(FAILED, "a", "b")
    bench.end(REVOKED, "c", "a")
    assert bench.counts() == (2, 0, 2, 1)
    bench.end(SUCCEEDED, "a", "c", "d", "nobody")
    assert bench.counts() == (1, 3, 1, 0)
    assert bench.redis.smembers("p:graceful:batch:b:succeeded") == {"a", "c", "d"}
    bench.end(FAILED, "nobody", "d", "e")
    assert bench.counts() == (0, 3, 2, 0)


def test_a_member_that_failed_and_succeeded_later(bench):
    bench.sent("x", "y")
    assert bench.end(FAILED, "x") == ["on_failure"]
    assert bench.end(FAILED, "x") == []
    assert bench.end(REVOKED, "y") == ["on_complete"]
    bench.ended("on_failure", "on_complete")
    assert bench.ledger.status("b").state is State.DONE
    assert bench.counts() == (0, 0, 1, 1)
    assert bench.ttl() > 30
    assert bench.ledger.messages("b", ["x", "y", "z"]) == {"x": b"xxx", "y": b"yyy"}
    assert bench.end(SUCCEEDED, "x") == []
    assert bench.end(SUCCEEDED, "y") == ["on_success"]
    assert bench.ledger.status("b").finished is None
    bench.ended("on_success")
    assert bench.ledger.status("b").state is State.DONE
    assert bench.counts() == (0, 2, 0, 0)


def test_empty(bench):
    assert {one.name for one in bench.sent()} == {"on_complete", "on_success"}
    assert bench.ledger.sent("b") == []


def test_never_complete_while_it_is_sent(bench):
    bench.create()
    bench.ledger.begin_sending("b")
    assert bench.add("x") == 1
    assert bench.end(SUCCEEDED, "x") == []
    assert bench.add("x", "y") == 1
    assert bench.counts() == (1, 1, 0, 0)
    assert bench.end(SUCCEEDED, "y") == []
    assert len(bench.ledger.sent("b")) == 2


def test_adding(bench):
    bench.sent("x", "y")
    with pytest.raises(BatchFinished, match="has been sent"):
        bench.add("z")
    with pytest.raises(UnknownBatch, match="no batch 'c'"):
        bench.add("z", batch="c")
    assert bench.add("z", inside="x") == 1
    bench.end(SUCCEEDED, "x")
    with pytest.raises(BatchFinished):
        bench.add("zz", inside="x")
    assert bench.end(SUCCEEDED, "y") == []
    assert bench.end(SUCCEEDED, "z") == ["on_complete", "on_success"]
    assert bench.add("late", inside="callback:on_complete") == 1
    bench.ended("on_complete", "on_success")
    assert bench.ledger.status("b").finished is None
    with pytest.raises(BatchFinished):
        bench.add("later", inside="callback:on_complete")
    assert bench.end(SUCCEEDED, "late") == []
    with pytest.raises(BatchFinished, match="has ended"):
        bench.add("w", inside="late")


def test_a_parent_waits_for_the_callbacks_of_its_kids(bench):
    bench.create()
    bench.create("kid", parent="b", ttl=5000, linger=60)
    assert bench.ttl() > bench.ttl("kid") > 1000
    bench.ledger.sent("b")
    bench.add("k", batch="kid")
    bench.ledger.sent("kid")
    assert bench.end(FAILED, "k", batch="kid") == [("kid", "on_failure"), ("kid", "on_complete")]
    assert bench.ended("on_failure", batch="kid") == []
    assert bench.counts() == (1, 0, 0, 0)
    assert bench.ended("on_complete", batch="kid") == [("b", "on_failure"), ("b", "on_complete")]
    assert bench.counts() == (0, 0, 1, 0)
    bench.ended("on_failure", "on_complete")
    assert bench.ledger.status("b").state is State.DONE
    assert bench.end(SUCCEEDED, "k", batch="kid") == [("kid", "on_success")]
    assert bench.ledger.status("b").kids == 1
    assert bench.ended("on_success", batch="kid") == [("b", "on_success")]
    bench.ended("on_success")
    assert bench.counts() == (0, 1, 0, 0)
    assert bench.ledger.status("b").finished


def test_cancelled(bench):
    bench.create()
    bench.create("kid", parent="b", callbacks=())
    bench.add("k", batch="kid")
    bench.add("x")
    assert bench.ledger.cancel("b") == []
    assert bench.ledger.is_cancelled("kid")
    assert not bench.ledger.is_cancelled("unknown")
    with pytest.raises(BatchFinished, match="was cancelled"):
        bench.add("y")
    bench.end(SUCCEEDED, "x")
    assert bench.end(REVOKED, "k", batch="kid") == ["on_complete"]
    bench.ended("on_complete")
    assert bench.counts() == (0, 1, 0, 1)
    assert bench.ledger.status("b").finished


def test_ends_say_what_is_not_cancelled(bench):
    """So nobody has to ask before the next member begins."""
    for batch in ("b", "c"):
        bench.sent("x", "y", batch=batch)
    ends = [End(batch, "x", SUCCEEDED) for batch in ("b", "c", "unknown")]
    assert sorted(bench.ledger.end_and_look(ends)[1]) == ["b", "c"]
    bench.ledger.cancel("c")
    assert bench.ledger.end_and_look(ends)[1] == ["b"]
    due, going = bench.ledger.end_and_look([End("c", "y", REVOKED)])
    assert (due, going) == ([Due("c", "on_complete")], [])


def test_complete_by_force(bench):
    bench.create()
    bench.ledger.add("b", [(str(number), b"") for number in range(1200)])
    assert {one.name for one in bench.ledger.complete("b")} == {"on_failure", "on_complete"}
    assert bench.counts() == (0, 0, 1200, 0)
    bench.ledger.published(Due("b", "on_failure"))
    bench.ledger.published(Due("b", "on_complete"))
    assert bench.ledger.status("b").finished is None
    bench.ledger.complete("b")
    assert bench.ledger.status("b").finished


def test_dropped(bench):
    bench.create()
    bench.ledger.create("kid", parent="b", ttl=100, linger=30)
    bench.add("k", batch="kid")
    bench.ledger.sent("b")
    assert [one.name for one in bench.ledger.drop("kid")] == ["on_complete"]
    bench.ended("on_complete")
    bench.ledger.drop("b")
    assert bench.redis.keys("*") == []
    for ask in (bench.ledger.status, bench.ledger.drop, bench.ledger.cancel, bench.ledger.complete):
        with pytest.raises(UnknownBatch):
            ask("b")


def test_claims_go_with_ends(bench):
    bench.redis.hset("p:graceful:claims:w", mapping={"1": "x", "2": "y"})
    bench.redis.expire("p:graceful:claims:w", 100)
    bench.sent("x", "y")
    ends = [
        End("b", "x", SUCCEEDED, ("w", 1)),
        End("b", "y", FAILED, ("w", 3)),
        End("unknown", "y", FAILED, ("w", 2)),
    ]
    assert bench.ledger.end(ends) == []
    assert bench.counts() == (1, 1, 0, 0)
    assert not bench.redis.exists("p:graceful:claims:w")


def test_a_callback_is_pushed_as_it_leaves_the_outbox(bench):
    bench.sent()
    push = {"list_key": "graceful:list", "bell": "graceful:bell:list", "message": b"m"}
    assert bench.ledger.published(Due("b", "on_success"), **push)
    assert not bench.ledger.published(Due("b", "on_success"), **push)
    assert bench.redis.lrange("p:graceful:list", 0, -1) == ["m"]
    assert bench.redis.llen("p:graceful:bell:list") == 1
    bench.redis.delete("p:graceful:list")


def test_of_two_copies_of_a_callback_one_runs(bench):
    bench.sent()
    assert bench.ledger.may_run("b", "on_success", "one")
    assert not bench.ledger.may_run("b", "on_success", "two")
    assert bench.ledger.may_run("b", "on_success", "one")
    bench.ended("on_success")
    assert not bench.ledger.may_run("b", "on_success", "one")


def test_a_callback_of_several_tasks_runs_on_when_one_has_failed(bench):
    """As the header of any chord; no other copy begins."""
    bench.sent()
    assert bench.ledger.may_run("b", "on_success", "one", part=ANY)
    bench.ended("on_success")
    assert bench.ledger.may_run("b", "on_success", "one", part=ANY)
    assert not bench.ledger.may_run("b", "on_success", "two", part=ANY)
    assert not bench.ledger.may_run("b", "on_success", "one")


def test_each_part_of_a_callback_runs_in_one_copy(bench):
    """Of two copies that were sent, or one of which was sent in part."""
    bench.sent(callbacks=["on_complete"])
    due = Due("b", "on_complete")
    assert not bench.ledger.has_begun(due)
    for _ in range(2):
        assert bench.ledger.may_run(*due, "one", part="first")
        assert not bench.ledger.may_run(*due, "two", part="first")
        assert bench.ledger.may_run(*due, "two", part="second")
        assert not bench.ledger.may_run(*due, "one", part="second")
    assert bench.ledger.has_begun(due)
    assert bench.redis.pttl("p:graceful:batch:b:copies") > 0
    assert bench.ledger.may_run(*due, "two"), "its last task, whoever was first before"
    assert not bench.ledger.may_run(*due, "one")
    bench.ledger.fire(*due)
    assert bench.ledger.may_run(*due, "three", part="first"), "it was sent by hand"
    assert not bench.ledger.may_run(*due, "one", part="first")
    bench.ledger.published(due)
    bench.ledger.callback_ended(*due)
    assert bench.ledger.may_run(*due, "three", part="third"), "when the callback has failed"
    bench.ledger.callback_ended(*due)
    assert (
        0
        < bench.redis.ttl("p:graceful:batch:b:copies")
        <= bench.redis.ttl("p:graceful:batch:b") + 1
    )
    bench.ledger.drop("b")
    assert not bench.redis.keys("p:graceful:batch:b*")


def test_parts_run_on_when_one_was_kept_and_has_failed_again(bench):
    bench.sent(callbacks=["on_complete"])
    due = Due("b", "on_complete")
    bench.ledger.published(due)
    assert bench.ledger.may_run(*due, "one", part="first")
    bench.ledger.callback_ended(*due, kept=True)
    assert bench.ledger.may_run(*due, "one", part="first")
    bench.ledger.callback_ended(*due)
    assert bench.ledger.may_run(*due, "one", part="second"), "it waited for its time"
    assert not bench.ledger.may_run(*due, "two", part="first")


def test_a_callback_that_has_failed_before_all_of_it_was_sent(bench):
    """It is sent all the same, and has ended."""
    bench.sent(callbacks=["on_complete"])
    due = Due("b", "on_complete")
    assert bench.ledger.may_run(*due, "one", part="first")
    bench.ledger.callback_ended(*due)
    assert bench.ledger.outbox(0) == [due]
    assert bench.ledger.published(due)
    assert bench.ledger.status("b").callbacks == {"on_complete": "ended"}
    assert not bench.ledger.outbox(0)
    assert bench.ledger.may_run(*due, "two", part="second")
    assert not bench.ledger.may_run(*due, "two", part="first")


def test_no_part_begins_of_a_callback_that_counts_as_ended(bench):
    bench.sent(callbacks=["on_complete"])
    bench.ledger.published(Due("b", "on_complete"))
    bench.ledger.callback_ended("b", "on_complete")
    assert not bench.ledger.may_run("b", "on_complete", "one", part="first")


def test_a_callback_that_was_kept_runs_again(bench):
    bench.sent(callbacks=["on_complete"])
    bench.ledger.published(Due("b", "on_complete"))
    assert bench.ledger.may_run("b", "on_complete", "one")
    bench.ledger.callback_ended("b", "on_complete", kept=True)
    assert bench.ledger.status("b").finished
    for _ in range(2):
        assert bench.ledger.may_run("b", "on_complete", "one")
        assert not bench.ledger.may_run("b", "on_complete", "two")
    bench.ledger.callback_ended("b", "on_complete")
    assert not bench.ledger.may_run("b", "on_complete", "one")


def test_a_callback_that_counts_as_ended_by_force_runs(bench):
    bench.sent(callbacks=["on_complete"])
    bench.ledger.published(Due("b", "on_complete"))
    bench.ledger.complete("b")
    assert bench.ledger.status("b").finished
    for _ in range(2):
        assert bench.ledger.may_run("b", "on_complete", "one")
    bench.ledger.callback_ended("b", "on_complete")
    assert not bench.ledger.may_run("b", "on_complete", "one")


def test_fired_by_hand(bench):
    bench.sent("x")
    assert [one.name for one in bench.ledger.fire("b", "on_complete")] == ["on_complete"]
    bench.ledger.published(Due("b", "on_complete"))
    assert len(bench.ledger.fire("b", "on_complete")) == 1
    bench.ended("on_complete")
    assert bench.ledger.fire("b", "on_complete") == []
    assert bench.end(SUCCEEDED, "x") == ["on_success"]


def test_what_redis_has_lost_is_not_complete(bench):
    bench.sent("x", "y")
    bench.redis.delete("p:graceful:batch:b:pending")
    assert bench.end(SUCCEEDED, "x") == []
    assert bench.ledger.status("b").pending == 2
    assert {one.name for one in bench.ledger.complete("b")} == {"on_failure", "on_complete"}
    assert bench.ledger.status("b").failed == 2


def test_a_callback_that_a_later_version_has_stored(bench):
    bench.create()
    field = "callback:on_success"
    stored = json.loads(bench.redis.hget("p:graceful:batch:b", field))
    bench.redis.hset("p:graceful:batch:b", field, json.dumps({**stored, "later": 1}))
    assert bench.ledger.callback(Due("b", "on_success")) == callback("on_success")
