"""Deaths and the quarantine, against a real Redis: what a rescuer of dead workers relies on."""

from __future__ import annotations

import json
import re
import threading
import uuid
from typing import Any

import pytest
from celery import Celery
from celery import signals as celery_signals

from celery_graceful import PoisonedTask, signals
from celery_graceful.claims.rescue import DeadClaim
from celery_graceful.poison import deaths, quarantine, redelivered
from celery_graceful.store.app_stores import find_workers_store, settings_of
from celery_graceful.store.store import StoreAway
from tests.servers import RedisServer
from tests.support.monitor import monitored
from tests.support.raw import Events
from tests.support.workers import TIMEOUT, wait_until


@pytest.fixture
def app(redis_db):
    return make_app(redis_db)


def make_app(redis_db, **conf):
    app = Celery(
        uuid.uuid4().hex, broker=redis_db.url, backend=redis_db.backend_url, set_as_current=False
    )
    app.conf.update(conf)

    @app.task(name="known", shared=False)
    def known(*args):
        return args

    @app.task(name="told", shared=False)
    def told(task_id):
        """With one argument it is sent, not called."""

    return app


def judge(app, worker, running):
    """As a rescue does, which tells of what it took at the end."""
    store = find_workers_store(app)
    about = json.loads(store.execute("GET", [f"graceful:worker:{worker}"]) or "{}")
    return deaths.judge(app, store, worker, about, running, tell=lambda: deaths.tell_untold(app))


class Dead:
    """A worker that has claimed what is in the queue, and died."""

    def __init__(self, app, redis_db, worker, prefix=""):
        self.app, self.client, self.worker, self.prefix = app, redis_db.client, worker, prefix
        self.claims = []

    @property
    def key(self):
        return f"{self.prefix}graceful:claims:{self.worker}"

    def claim(self, queue="celery"):
        key = self.prefix + queue
        raw = self.client.rpop(key)
        assert raw is not None
        claim = DeadClaim(str(len(self.claims) + 1), key, raw)
        self.client.hset(self.key, claim.number, f"{key}\0{raw}")
        self.claims.append(claim)
        return claim

    def judge(self):
        return judge(self.app, self.worker, self.claims)

    def give_back(self):
        for claim in self.claims:
            if self.client.hdel(self.key, claim.number):
                self.client.rpush(claim.list, claim.message)


def kept(app):
    return {one.id: one for one in quarantine.entries(find_workers_store(app))}


def test_the_third_worker_that_dies_of_it(app, redis_db, caplog, monkeypatch):
    returned = []
    monkeypatch.setattr(
        type(app.tasks["known"]),
        "after_return",
        lambda self, status, retval, task_id, args, *_: returned.append((status, task_id, args)),
    )
    app.send_task("known", ["harmless"], task_id="harmless")
    sent = app.send_task(
        "known", [1], {"a": [], "big": 2**70}, task_id="bad", link_error=app.signature("told")
    )
    for number in range(3):
        worker = Dead(app, redis_db, f"w{number}")
        claims = {}
        for _ in range(2):
            claim = worker.claim()
            claims[json.loads(claim.message)["headers"]["id"]] = claim
        running = [claims["bad"]]  # the other one is prefetched
        judged = judge(app, worker.worker, running)
        assert judged == ({claims["bad"].number} if number == 2 else set())
        assert judge(app, worker.worker, running) == set(), "the same death"
        worker.give_back()
        becomes = "goes to quarantine" if number == 2 else "it goes back to its queue"
        said = rf"Task known\[bad\].* death {number + 1} of 3.* {becomes}"
        wait_until(lambda said=said: re.search(said, caplog.text), said)
    assert "[harmless]" not in caplog.text
    with pytest.raises(PoisonedTask, match="died 3 times within 72 h") as caught:
        sent.get(timeout=TIMEOUT)
    assert caught.value.deaths == 3
    wait_until(lambda: returned == [("FAILURE", "bad", [1])], "its locks are freed")
    ids = [json.loads(raw)["headers"]["id"] for raw in redis_db.client.lrange("celery", 0, -1)]
    assert ids.count("bad") == 0
    assert ids.count("harmless") == 1
    assert len(ids) == 2, "and the errback"
    (one,) = kept(app).values()
    assert (one.id, one.task, one.deaths, one.worker) == ("bad", "known", 3, "w2")
    assert not redis_db.client.exists("graceful:deaths:harmless", "graceful:claims:w2")
    args, kwargs, _ = one.to_message().decode()
    assert (args, kwargs) == ([1], {"a": [], "big": 2**70})
    assert not redis_db.client.exists("graceful:deaths:bad", "graceful:untold")


def test_sent_again_as_it_was(redis_db):
    app = make_app(
        redis_db,
        broker_transport_options={"global_keyprefix": "shop:", "priority_steps": [0, 9]},
        graceful_poison_limit=1,
    )
    app.send_task("known", [[]], task_id="bad", priority=9)
    queue = redis_db.client.keys("shop:celery*")[0]
    worker = Dead(app, redis_db, "w", prefix="shop:")
    claim = worker.claim(queue.removeprefix("shop:"))
    assert worker.judge() == {"1"}
    assert not redis_db.client.exists(queue, worker.key)
    store = find_workers_store(app)
    assert quarantine.send_again(app, store, kept(app)["bad"]) is True
    assert redis_db.client.lrange(queue, 0, -1) == [claim.message]
    assert quarantine.delete(store, "bad") is False
    assert kept(app) == {}


def use_protocol(app, protocol):
    app.conf.task_protocol = app.amqp.task_protocol = protocol
    app.amqp.__dict__.pop("create_task_message", None)


@pytest.mark.parametrize("protocol", [1, 2])
def test_what_is_sent_again_expires_no_more(redis_db, protocol):
    """It had begun; wherever the broker, and whichever part of the message says when it expires."""
    app = make_app(redis_db, graceful_poison_limit=1)
    use_protocol(app, protocol)
    app.send_task("known", task_id="bad", expires=60)
    worker = Dead(app, redis_db, "w")
    worker.claim()
    assert worker.judge() == {"1"}
    store, there = find_workers_store(app), kept(app)["bad"]
    assert quarantine.send_again(app, store, there)
    (raw,) = redis_db.client.lrange("celery", 0, -1)
    assert json.loads(raw)["headers"]["redelivered"] == "begun"

    rest = {"why": "", "deaths": 1, "worker": ""}
    copy = quarantine.Kept.of_message(there.to_message(), **rest)
    assert quarantine.put(store, copy) == [True]
    with (
        Celery(broker="memory://", set_as_current=False) as elsewhere,
        elsewhere.connection_for_read() as connection,
    ):
        queue = elsewhere.amqp.queues["celery"](connection.default_channel)
        queue.declare()
        queue.purge()  # all of a process share it
        assert quarantine.send_again(elsewhere, store, copy)
        message = connection.default_channel.basic_get("celery", no_ack=True)
    assert message.headers["redelivered"] == "begun"


def test_a_worker_may_have_it_before_it_is_taken_out(redis_db, monkeypatch):
    """With a broker other than the store, that is two steps: it is no copy of what is kept."""
    app = make_app(redis_db, graceful_poison_limit=1)
    app.send_task("known", task_id="bad")
    worker = Dead(app, redis_db, "w")
    worker.claim()
    assert worker.judge() == {"1"}
    store, (there,) = find_workers_store(app), kept(app).values()
    copy = quarantine.Kept.of_message(there.to_message(), why="", deaths=1, worker="")
    assert quarantine.put(store, copy) == [True]
    keys = ["graceful:started:bad", "graceful:deaths:bad", quarantine.QUARANTINE, "graceful:epoch"]
    keys.append(quarantine.release_key("bad"))

    def judged():
        (found,) = redelivered.look(store, settings_of(app), "w2", redelivered.Asked("bad"))
        return found.verdict

    seen, delete = [], quarantine.delete

    def deleted(*args):
        seen.append(judged())
        return delete(*args)

    monkeypatch.setattr(quarantine, "delete", deleted)
    assert judged() == "kept"
    with Celery(broker="memory://", set_as_current=False) as elsewhere:
        assert quarantine.send_again(elsewhere, store, copy)
        with elsewhere.connection_for_read() as connection:
            elsewhere.amqp.queues["celery"](connection.default_channel).purge()
    assert seen == ["run"]
    assert not redis_db.client.exists(*keys)


def test_a_claim_that_somebody_else_gave_back(redis_db):
    app = make_app(redis_db, graceful_poison_limit=1)
    app.send_task("known", task_id="bad")
    worker = Dead(app, redis_db, "w")
    worker.claim()
    worker.give_back()
    assert worker.judge() == set()
    assert kept(app) == {}
    assert redis_db.client.llen("celery") == 1


def test_two_rescuers_at_once(redis_db):
    app = make_app(redis_db, graceful_poison_limit=1)
    told = []
    signals.task_quarantined.connect(
        receiver := lambda sender, task_id, **_: told.append(task_id), weak=False
    )
    for number in range(150):
        app.send_task("known", task_id=str(number))
    worker = Dead(app, redis_db, "w")
    for _ in range(150):
        worker.claim()
    taken: list[set[str]] = []
    judges = [threading.Thread(target=lambda: taken.append(worker.judge())) for _ in range(2)]
    for judge in judges:
        judge.start()
    for judge in judges:
        judge.join(60)
    signals.task_quarantined.disconnect(receiver)
    assert taken[0] | taken[1] == {str(number + 1) for number in range(150)}
    assert not taken[0] & taken[1]
    assert sorted(told, key=int) == [str(number) for number in range(150)]


def test_a_death_that_is_long_ago(redis_db):
    app = make_app(redis_db, graceful_poison_limit=2, graceful_poison_window=100.0)
    app.send_task("known", task_id="bad")
    redis_db.client.zadd("graceful:deaths:bad", {"old/1": 1000.0})
    worker = Dead(app, redis_db, "w")
    worker.claim()
    assert worker.judge() == set()
    assert redis_db.client.zrange("graceful:deaths:bad", 0, -1) == ["w/1"]
    assert 0 < redis_db.client.pttl("graceful:deaths:bad") <= 100_000


def test_no_limit(redis_db):
    app = make_app(redis_db, graceful_poison_limit=0)
    app.send_task("known", task_id="bad")
    worker = Dead(app, redis_db, "w")
    worker.claim()
    assert worker.judge() == set()
    assert not redis_db.client.keys("graceful:deaths:*")


def test_tasks_and_messages_that_nobody_knows(redis_db):
    app = make_app(redis_db, graceful_poison_limit=1)
    failed = []
    celery_signals.task_failure.connect(
        receiver := lambda sender, task_id, **_: failed.append((sender.name, task_id)), weak=False
    )
    app.send_task("elsewhere", [1], task_id="unknown")
    use_protocol(app, 1)
    app.send_task("known", [1], task_id="first-protocol")
    redis_db.client.lpush("celery", "no message at all")
    worker = Dead(app, redis_db, "w")
    for _ in range(3):
        worker.claim()
    assert worker.judge() == {"1", "2"}
    celery_signals.task_failure.disconnect(receiver)
    assert sorted(failed) == [("elsewhere", "unknown"), ("known", "first-protocol")]
    for task_id in kept(app):
        with pytest.raises(PoisonedTask):
            app.AsyncResult(task_id).get(timeout=TIMEOUT)


def test_who_could_not_be_told_is_told_later(redis_db, monkeypatch):
    app = make_app(redis_db, graceful_poison_limit=1)
    app.send_task("known", task_id="bad")
    worker = Dead(app, redis_db, "w")
    worker.claim()
    mark = app.backend.mark_as_failure

    def away(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("the result backend is away")

    monkeypatch.setattr(app.backend, "mark_as_failure", away)
    assert worker.judge() == {"1"}
    monkeypatch.setattr(app.backend, "mark_as_failure", mark)
    deaths.tell_untold(app)
    assert app.AsyncResult("bad").state == "PENDING", "not again at once"
    redis_db.client.zadd("graceful:untold", {"bad": 0})
    deaths.tell_untold(app)
    assert app.AsyncResult("bad").state == "FAILURE"
    assert not redis_db.client.exists("graceful:untold")


def test_listeners_hear_of_all_in_one_message(redis_db):
    """The broker may be far away, and others wait for their post-mortems."""
    app = make_app(redis_db, graceful_poison_limit=1)
    worker = Dead(app, redis_db, "w")
    for number in range(5):
        app.send_task("known", task_id=str(number))
        worker.claim()
    with monitored(redis_db.client) as commands:
        assert len(worker.judge()) == 5
    assert len([one for one in commands if one.startswith("PUBLISH") and "celeryev" in one]) == 1


def test_a_broker_that_is_away():
    app = Celery("away", broker="redis://127.0.0.1:1", set_as_current=False)
    claim = DeadClaim(
        "1",
        "celery",
        json.dumps({"body": "", "headers": {"id": "a", "task": "b"}, "properties": {}}),
    )
    with pytest.raises(StoreAway):
        judge(app, "w", [claim])


def test_what_a_later_version_has_kept(redis_db):
    app = make_app(redis_db, graceful_poison_limit=1)
    app.send_task("known", task_id="bad")
    worker = Dead(app, redis_db, "w")
    worker.claim()
    assert worker.judge() == {"1"}
    there = kept(app)["bad"]
    later = json.dumps({**json.loads(there.to_json()), "later": 1})
    redis_db.client.hset(quarantine.QUARANTINE, "bad", later)
    assert kept(app) == {"bad": there}


def test_a_store_that_goes_away_while_they_are_told(start_server, redis_db):
    """Listeners hear of those that were told before, whom nobody tells again."""
    server = start_server(RedisServer)
    app = make_app(redis_db, graceful_store=server.url(), broker_url="memory://")
    sender, store = make_app(redis_db), find_workers_store(app)
    for name in ("bad", "worse"):
        sender.send_task("known", task_id=name)
        raw = redis_db.client.rpop("celery")
        one = quarantine.Kept.of_claim("celery", raw, why="", deaths=1, worker="w")
        assert quarantine.put(store, one) == [True]

    def leave(task_id, **_: Any) -> None:
        if task_id == "worse":
            server.kill()

    signals.task_quarantined.connect(leave)
    events = Events(app)
    try:
        with pytest.raises(StoreAway):
            deaths.tell_untold(app)
    finally:
        signals.task_quarantined.disconnect(leave)
    told = ["task-failed", "task-quarantined"]
    assert events.all() == {"bad": told, "worse": told}
