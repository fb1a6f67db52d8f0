"""What operators read and delete, in this process."""

from __future__ import annotations

import datetime as dt
import json
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from kombu import Queue as KombuQueue

from celery_graceful import Batch, Graceful
from celery_graceful.checkpoints.checkpoint import key_of
from celery_graceful.claims.claimant import FALLEN, WORKERS, lease_key
from celery_graceful.claims.lease import broker_digest
from celery_graceful.history import reading
from celery_graceful.history.entry import CUT_OFF, FLEET, Entry, What
from celery_graceful.history.journal import record, write
from celery_graceful.operations import Operations, asking, queues, why
from celery_graceful.operations.history import of_late
from celery_graceful.operations.queues import Unsure
from celery_graceful.operations.records import RunningTask
from celery_graceful.operations.stores import stores_of
from celery_graceful.operations.why import Search, _when
from celery_graceful.poison.deaths import Death, condemn, say_deaths
from celery_graceful.poison.quarantine import Kept, put
from celery_graceful.settings import Settings
from celery_graceful.store.app_stores import broker_store, find_store, find_workers_store
from celery_graceful.store.store import Store
from celery_graceful.unusable.waiting import Kind, Stray, WaitingRoom
from tests.conftest import RedisDB
from tests.servers import RedisServer
from tests.support.doctor import found
from tests.support.json_forms import AWKWARD, forms_of
from tests.support.operators import command, command_or, document, make_app
from tests.support.processes import free_port
from tests.support.workers import wait_until
from tests.unit.cli.test_tables import worker

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def app(redis_db: RedisDB) -> Celery:
    app = Celery("operations", broker=redis_db.url, set_as_current=False)
    Graceful(app)

    @app.task(name="shop:export", shared=False)
    def export() -> None: ...

    return app


def test_a_checkpoint_is_that_of_its_task_alone(app: Celery, redis_db: RedisDB) -> None:
    """Names and ids may have colons in them; one id may end like another."""
    tasks = [("shop.bill", "1"), ("shop.bill", "invoice:1"), ("shop:export", "1")]
    for task in tasks:
        redis_db.client.hset(key_of(*task), "interruptions", len(task[1]))
    operations = Operations(app)
    assert sorted((one.task, one.id) for one in operations.checkpoints()) == tasks
    saved = operations.checkpoint("invoice:1")
    assert saved is not None
    assert (saved.task, saved.id, saved.interruptions) == ("shop.bill", "invoice:1", 9)
    named = operations.checkpoint("1", "shop:export")
    assert named is not None
    assert (named.task, named.id) == ("shop:export", "1")
    assert operations.clear_checkpoint("1", "shop:export")
    assert operations.clear_checkpoint("1")
    assert not operations.clear_checkpoint("1")
    assert not operations.clear_checkpoint("export:1")
    assert [(one.task, one.id) for one in operations.checkpoints()] == [tasks[1]]


def test_why_names_the_batch_that_waits_for_what_is_nowhere(app: Celery, redis_db: RedisDB) -> None:
    others = Batch(app=app)
    others.apply_async([app.signature("shop:export")] * 3)
    batch = Batch(app=app)
    batch.apply_async([app.signature("shop:export").set(task_id="a b"), app.signature("other")])
    assert Operations(app, wait=0.1).why("a b").state == "queued"
    redis_db.client.delete("celery")
    found = Operations(app, wait=0.1).why("a b")
    assert found.stuck
    assert f"the batch {batch.id} waits for it" in found.sentences
    assert found.mend == f"batches show --look {batch.id}"
    assert not Operations(app, wait=0.1).why("b").mend


@pytest.mark.parametrize("phase", ["quiet", "soft"])
def test_who_takes_nothing_more_consumes_no_queue(
    phase: str, app: Celery, redis_db: RedisDB
) -> None:
    redis_db.client.rpush("celery", "one", "two")
    goes = worker("w1@a", queues=("celery",))
    stands = worker("w2@a", queues=("celery",), phase=phase)
    assert queues.unconsumed(app, stores_of(app), [goes, stands]) == {}
    assert queues.unconsumed(app, stores_of(app), [stands]) == {"celery": 2}


def test_a_search_through_many_queues_ends(
    app: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_db.client.rpush("other", "{}")
    store = broker_store(app)
    assert store is not None
    assert queues.find_in_queues(app, store, "1") is None
    monkeypatch.setattr(queues, "PATIENCE", -1.0)
    with pytest.raises(Unsure, match="too many queues"):
        queues.find_in_queues(app, store, "1")


@pytest.mark.parametrize("task_id", AWKWARD)
def test_a_task_is_found_however_its_id_is_written(
    app: Celery, redis_db: RedisDB, task_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a queue, and where plain workers keep what they have taken, by any producer."""
    monkeypatch.setattr(why, "ask", lambda *args, **kwargs: {})  # there is no worker
    app.tasks["shop:export"].apply_async(task_id=task_id)
    operations = Operations(app, wait=0.1)
    sent = redis_db.client.lindex("celery", 0)
    for form, written in forms_of(task_id).items():
        redis_db.client.flushdb()
        text = sent.replace(json.dumps(task_id), written)
        redis_db.client.rpush(
            "celery", sent.replace(json.dumps(task_id), '"other"'), text, "{}", '{"id": 1}'
        )
        found = operations.why(task_id)
        assert (found.state, found.task, found.place) == ("queued", "shop:export", 3), form
        redis_db.client.delete("celery")
        redis_db.client.hset("unacked", "tag", f'[{text}, "", "celery"]')
        found = operations.why(task_id)
        assert (found.state, found.task) == ("claimed", "shop:export"), form


def test_what_a_plain_worker_has_taken(app: Celery, redis_db: RedisDB) -> None:
    """It is in no queue and nobody's claim; kombu gives it back after an hour."""
    message = {"headers": {"id": "taken", "task": "shop.bill"}, "properties": {}, "body": ""}
    redis_db.client.hset("unacked", "tag", json.dumps([message, "", "celery"]))
    redis_db.client.zadd("unacked_index", {"tag": 4_000_000_000})
    operations = Operations(app, wait=0.1)
    found = operations.why("taken")
    assert (found.task, found.state, found.stuck) == ("shop.bill", "claimed", True)
    assert found.sentences[0].endswith("if that dies, it comes back at 2096-10-02 08:06:40Z")
    said = [one.what for one in operations.status().findings]
    assert "1 message at workers without claims (plain Celery), none of which answers" in said


def test_why_says_what_is_known_while_rabbitmq_is_away(redis_db: RedisDB) -> None:
    app = Celery(broker=f"amqp://127.0.0.1:{free_port()}//", set_as_current=False)
    app.conf.graceful_store = redis_db.url
    store = find_store(app)
    assert store is not None
    moment = Entry(What.INTERRUPTED, "1", "shop.bill", "w1@a", "shutdown", "at 3")
    write(store, Settings(), [moment])
    found = Operations(app, wait=0.1).why("1")
    assert (found.state, found.stuck) == ("unknown", True)
    assert "the broker does not answer: " in found.sentences[1]
    assert found.sentences[-1].endswith("on w1@a, shutdown, at 3")


def test_what_waits_stays_while_rabbitmq_is_away(redis_db: RedisDB) -> None:
    app = make_app(f"amqp://127.0.0.1:{free_port()}//", redis_db.url)
    store = find_store(app)
    assert store is not None
    room = WaitingRoom(store, broker_digest(app))
    kept = Kept("1", "new", "", 0, 1.0, "", {"queue": "celery"}).to_json()
    assert room.wait("", 60, [Stray("1", Kind("celery", "new"), text=kept)]) == ["waits"]
    (found,) = document(app, "Rescued", "rescue", status=3)
    assert found["waiting"] == {"new": 1}
    assert "127.0.0.1" in found["error"]
    assert room.kinds() == {Kind("celery", "new"): 1}


def test_why_of_a_task_whose_worker_stops(app: Celery) -> None:
    busy = (RunningTask("1", "shop.bill", 5.0, None),)
    stops = worker("w1@a", running=busy, running_count=1, seconds_left=12.0)
    found = Search(app, stores_of(app), [stops], 0.1, "1").why()
    assert found.sentences == ("it runs on w1@a for 5 s; that stops, and gives it up in 12 s",)


def test_why_of_a_task_in_quarantine_says_it_once(app: Celery) -> None:
    store = broker_store(app)
    assert store is not None
    write(store, Settings(), [Entry(What.QUARANTINED, "1", "shop.bill", "w1@a", "it died")])
    put(store, Kept("1", "shop.bill", "it died", 3, 0.0, "w1@a:01", {}))
    found = Operations(app).why("1")
    assert found.sentences == ("in quarantine since 1970-01-01 00:00:00Z: it died",)


def test_an_oom_loop_is_seen_before_one_task_has_died_three_times(
    app: Celery, redis_db: RedisDB
) -> None:
    store = broker_store(app)
    assert store is not None
    for number in range(3):
        death = Death("w1@a:01", "the process that ran it has died of signal 9", str(number))
        say_deaths(store, Settings(), [("shop.bill", str(number), 1, death)])
    (moment,) = Operations(app).history("0").moments
    assert moment.reason == "the process that ran it has died of signal 9, death 1 of 3"
    said = [(one.what, one.mend) for one in Operations(app).status().findings]
    what, mend = said[-1]
    assert re.match(r"3 processes died in their tasks within 10 min, the last \d+ s ago$", what)
    assert mend == "history"

    def count() -> int:
        return of_late(stores_of(app), 600).deaths

    # A worker dies, and takes two tasks along; one that was frozen goes on.
    death = Death("w2@a:01", "", "w2@a:01")
    say_deaths(store, Settings(), [("shop.bill", str(n), 2, death) for n in range(2)])
    both = [f"{number}" for number in range(2)]
    wait_until(lambda: all(len(Operations(app).history(one).moments) == 2 for one in both))
    assert count() == 4
    write(store, Settings(), [Entry(What.FENCED, str(n), "", "w2@a") for n in range(2)])
    assert count() == 3
    assert not of_late(stores_of(app), 600).cut_off
    why = f"given back by w1@a; {CUT_OFF}"
    write(store, Settings(), [Entry(What.RESCUED, "2", "", f"w{n}@a", why) for n in (2, 1, 2)])
    assert of_late(stores_of(app), 600).cut_off == ["w1@a", "w2@a"]
    kept = Kept("0", "shop.bill", "", 3, 0.0, "w3@a:01", {})
    death = Death("w3@a:01", "it died", "w3@a:01")
    assert condemn(store, Settings(), [(kept, death)]) == [True]
    wait_until(lambda: count() == 4)
    last = Operations(app).history("0").moments[-2:]
    assert [(one.kind, one.reason[:22]) for one in last] == [
        ("died", "it died, death 3 of 3"),
        ("quarantined", "the process that ran i"),
    ]
    redis_db.client.delete(FLEET)  # and an hour later
    for number in range(3):
        redis_db.client.xadd(FLEET, {"m": Entry(What.DIED, "0").to_json()}, id=f"{number + 1}-1")
    assert not any("died" in one.what for one in Operations(app).status().findings)


def test_a_long_history_holds_up_no_look_at_the_fleet(
    app: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LATEST", 5)
    store = broker_store(app)
    assert store is not None
    for kind, count in ((What.DIED, 4), (What.RELEASED, 3), (What.DIED, 1)):
        write(store, Settings(), [Entry(kind, f"{number}") for number in range(count)])
    assert [one.kind for one in reading.latest([store, store], 600)] == [
        What.DIED,
        *[What.RELEASED] * 3,
        What.DIED,
    ]


def test_the_history_of_a_redis_that_takes_no_writes(
    start_server: Callable[..., RedisServer],
) -> None:
    """It is read all the same; who would write hears why, and a task hears nothing."""
    server = start_server(RedisServer)
    app = make_app(server.url(0), server.url(1))
    assert "deploy  first" in command(app, "deploy", "mark", "first")
    store, died = broker_store(app), Entry(What.DIED, "1")
    assert store is not None
    with server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
        assert "OutOfMemoryError" in command(app, "deploy", "mark", "second", status=3)
        record(store, Settings(), died)
        assert "deploy  first" in command(app, "history")
        client.config_set("maxmemory", "0")
        client.replicaof("127.0.0.1", "1")
        assert "no master any more" in command(app, "deploy", "mark", "third", status=3)
        record(store, Settings(), died)
        assert "deploy  first" in command(app, "history")
        client.replicaof("NO", "ONE")
        assert "deploy  fourth" in command(app, "deploy", "mark", "fourth")
    assert [one.kind for one in Operations(app).history().moments] == ["deploy", "deploy"]


def test_which_tasks_were_interrupted_and_resumed(app: Celery, redis_db: RedisDB) -> None:
    store, operations = broker_store(app), Operations(app)
    assert store is not None
    assert (operations.interrupted(), operations.resumed()) == ([], [])
    kinds = (What.INTERRUPTED, What.RESUMED, What.INTERRUPTED, What.GIVEN_UP, What.RELEASED)
    write(store, Settings(), [Entry(kind, str(n)) for n, kind in enumerate(kinds)])
    told = [(moment.kind, moment.id) for moment in operations.interrupted()]
    assert told == [("interrupted", "0"), ("interrupted", "2"), ("given_up", "3")]
    assert [moment.id for moment in operations.resumed()] == ["1"]


def test_a_large_fleet_is_read_at_once(
    app: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis may be far away: what is asked of it does not grow with the workers."""
    asked: list[str] = []
    ask = Store._ask

    def counted(self: Store, what: str, *args: Any) -> Any:
        asked.append(what)
        return ask(self, what, *args)

    monkeypatch.setattr(Store, "_ask", counted)
    counts = []
    for fleet in (1, 40):
        for number in range(fleet):
            worker, task_id = f"w{number:02}@a:01", f"task-{number}"
            redis_db.client.sadd(WORKERS, worker)
            beat = {"phase": "RUNNING", "running": [f"shop.bill[{task_id}]"], "running_for": [3.0]}
            redis_db.client.set(lease_key(worker), json.dumps({**beat, "ttl": 60}), px=50_000)
            redis_db.client.hset(f"graceful:claims:{worker}", "1", "celery\0{}")
            redis_db.client.hset(
                key_of("shop.bill", task_id), "c:rows", f'["int", {number}, false]'
            )
        asked.clear()
        workers = Operations(app).workers()
        counts.append(len(asked))
        assert len(workers) == fleet
        for number, worker in enumerate(workers):
            (task,) = worker.running
            assert task.checkpoint is not None
            assert (worker.claims, task.checkpoint.where) == (1, f"at {number} of rows")
            assert 10 <= worker.heard < 60
    assert counts[0] == counts[1], asked


def test_a_replica_is_read(start_server: Callable[..., RedisServer]) -> None:
    """Nothing of what is read needs to write; again and again, as ``--watch`` does."""
    master = start_server(RedisServer)
    replica = start_server(RedisServer, options={"replicaof": f"127.0.0.1 {master.port}"})
    app, beside = (make_app(server.url(0), server.url(1)) for server in (master, replica))
    command(app, "deploy", "mark", "first")
    with master.client() as client:  # which waits for what was written before its own
        client.sadd(WORKERS, "w1@a:01")
        client.set(lease_key("w1@a:01"), json.dumps({"phase": "RUNNING"}), px=60_000)
        client.hset(key_of("shop.bill", "1"), "interruptions", 1)
        client.wait(1, 20_000)
    said = f"127.0.0.1:{replica.port} is a replica: this may be a moment old"
    for _ in range(2):
        shown = document(beside, "Status", "status", status=1)
        assert [worker["name"] for worker in shown["workers"]] == ["w1@a"]
        assert [one["what"] for one in shown["findings"]] == [said]
    assert "deploy  first" in command(beside, "history")
    assert "shop.bill" in command(beside, "checkpoints", "list")
    assert "nobody has heard of it" in command(beside, "why", "nothing", status=1)
    for args in (["deploy", "mark", "x"], ["checkpoints", "clear", "1", "--yes"]):
        assert "no master any more" in command(beside, *args, status=3)
    (finding,) = found(beside, "CG212")
    assert finding.mend == "name its master, or Sentinels"
    master.stop()
    with replica.client() as client:
        wait_until(lambda: client.info("replication")["master_link_status"] == "down", "lost")
    (finding,) = Operations(beside).status().findings
    assert finding.what.startswith("Redis takes no writes: the broker: ")


def test_names_are_shown_as_they_were_written(app: Celery, redis_db: RedisDB) -> None:
    task = "shop.grüße_世界"
    redis_db.client.hset(key_of(task, "1"), "c:zeilen %C3%BC%2F%C3%A6", '["int", 3, false]')
    assert "  at 3 of zeilen ü/æ\n" in command(app, "checkpoints", "list")
    assert "  loop zeilen ü/æ: has done 3\n" in command(app, "checkpoints", "show", "1")
    message = {"headers": {"id": "2", "task": task}, "properties": {}, "body": ""}
    redis_db.client.lpush("büro", json.dumps(message))
    assert command(app, "why", "2", status=1).startswith(f"2  queued  {task}\n")


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        ("2026-11-27T04:08:46.613114+00:00", ", 2026-11-27 04:08:46Z"),
        ("2026-11-27T05:08:46.613114+01:00", ", 2026-11-27 04:08:46Z"),
        (dt.datetime(2026, 11, 27, 4, 8, 46), ", 2026-11-27 04:08:46Z"),
        ("yesterday", ", yesterday"),
        (None, ""),
    ],
)
def test_when_it_has_ended(ended: Any, said: str) -> None:
    """Each result backend says it in a way of its own."""
    assert _when(ended) == said


def test_each_kind_of_moment_is_read_back(app: Celery, redis_db: RedisDB) -> None:
    store = broker_store(app)
    assert store is not None
    for kind in What:
        write(store, Settings(), [Entry(kind, f"of {kind}", "shop.bill", "w1@a", "why", "at 3")])
    history = Operations(app).history()
    assert [one.kind for one in history.moments] == [str(kind) for kind in What]
    assert {(one.task, one.worker, one.reason, one.where) for one in history.moments} == {
        ("shop.bill", "w1@a", "why", "at 3")
    }
    for kind in What:
        (one,) = Operations(app).history(f"of {kind}").moments
        assert one.kind == str(kind)


def test_what_was_done_is_a_document(app: Celery, redis_db: RedisDB) -> None:
    redis_db.client.hset(key_of("shop.bill", "1"), "interruptions", 1)
    for ok, status in ((True, 0), (False, 1)):
        said = "cleared" if ok else "nothing is saved"
        args = ("checkpoints", "clear", "1", "--yes")
        assert document(app, "Done", *args, status=status) == {"id": "1", "ok": ok, "said": said}

    store = find_workers_store(app)
    assert store is not None
    message = {"headers": {"id": "2", "task": "shop.bill"}, "properties": {}, "body": ""}
    kept = {"list": "celery", "raw": json.dumps(message)}
    for task_id in ("2", "3"):
        put(store, Kept(task_id, "shop.bill", "why", 3, 1.0, "w1@a:01", kept))
    (done,) = document(app, "Done", "quarantine", "retry", "2")
    assert done == {"id": "2", "ok": True, "said": "sent again"}
    (done,) = document(app, "Done", "quarantine", "delete", "3", "--yes")
    assert done == {"id": "3", "ok": True, "said": "deleted"}

    redis_db.client.sadd("graceful:fallen", "w3@c:01")
    redis_db.client.hset("graceful:claims:w3@c:01", "1", f"celery\0{json.dumps(message)}")
    (looked,) = document(app, "Rescued", "rescue", "--dry-run", status=1)
    assert (looked["dead"], looked["moved"], looked["error"]) == ({"w3@c:01": 1}, None, "")
    (found,) = document(app, "Rescued", "rescue")
    assert (found["dead"], found["moved"]) == ({"w3@c:01": 1}, 1)
    redis_db.client.set("graceful:rescuer", "another")  # for however long
    (found,) = document(app, "Rescued", "rescue")
    assert (found["dead"], found["moved"]) == ({}, None)
    (away,) = document(make_app("redis://127.0.0.1:1", ""), "Rescued", "rescue", status=3)
    assert "127.0.0.1:1" in away["error"]


def test_leases_that_a_full_redis_let_run_out(start_server: Callable[..., RedisServer]) -> None:
    """Nobody is called dead who could not say that it lives."""
    server = start_server(RedisServer)
    app = make_app(server.url(0), server.url(1))
    message = {"headers": {"id": "1", "task": "shop.bill"}, "properties": {}, "body": ""}
    with server.client() as client:
        client.sadd(WORKERS, "w1@a:01")
        client.hset("graceful:claims:w1@a:01", "1", f"celery\0{json.dumps(message)}")
        client.sadd("graceful:begun:w1@a:01", "1")
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
        said = document(app, "Why", "why", "1", status=1)
        assert (said["state"], said["mend"]) == ("running", "doctor")
        assert "its lease could not be renewed, since Redis takes no" in said["sentences"][0]
        assert "1 claim  its lease could not be renewed\n" in command(app, "claims", status=1)
        for args in (["rescue"], ["rescue", "--dry-run"]):
            said = command(app, *args, status=3)
            assert "OutOfMemoryError" in said
            assert "w1@a:01 has no lease and holds 1 claim" in said
        for args in (
            ["quiet", "--yes"],
            ["stop", "w1@a", "--yes"],
            ["chaos", "kill-worker", "w1@a"],
        ):
            said = command(app, *args, status=3)
            assert "no lease can be renewed, so no worker is known: Redis takes no writes" in said
        client.config_set("maxmemory", "0")
        assert "dead: they wait" in command(app, "claims", status=1)
        went_back = "nobody is doubted any more"
        wait_until(lambda: "1 went back" in command_or(app, "rescue"), went_back)
        assert command(app, "claims") == "no message is claimed\n"


def test_nobody_is_killed_or_told_where_redis_takes_no_writes(
    start_server: Callable[..., RedisServer],
) -> None:
    """Also in the first seconds, in which leases still run."""
    server = start_server(RedisServer)
    app = make_app(server.url(0), server.url(1))
    with server.client() as client:
        client.sadd(WORKERS, "w1@a:01")
        client.set(lease_key("w1@a:01"), json.dumps({"phase": "RUNNING", "pid": 1}), px=60_000)
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
        said = command(app, "chaos", "kill-worker", "w1@a", "--yes", status=3)
        assert "nobody could give back what it holds: Redis takes no writes: " in said
        said = command(app, "stop", "w1@a", "--yes", status=3)
        assert "workers cannot be told: Redis takes no writes: " in said


def test_a_lease_that_a_task_has_renewed_says_nothing_of_its_worker(
    app: Celery, redis_db: RedisDB
) -> None:
    """Its main process is frozen, and one of its children is not: see ``still_mine.lua``."""
    message = {"headers": {"id": "1", "task": "shop:export"}, "properties": {}, "body": ""}
    redis_db.client.sadd(WORKERS, "w1@a:01")
    redis_db.client.hset("graceful:claims:w1@a:01", "1", f"celery\0{json.dumps(message)}")
    store = broker_store(app)
    assert store is not None
    keys = [WORKERS, lease_key("w1@a:01"), "graceful:claims:w1@a:01", FALLEN, "tombstone"]
    assert store.run("still_mine", keys, ["w1@a:01", 60_000, 1])
    shown = document(app, "Status", "status", status=1)
    assert shown["workers"] == []
    assert [one["name"] for one in shown["dead"]] == ["w1@a"]
    assert "w1@a is dead and holds 1 message" in [one["what"] for one in shown["findings"]]
    assert command(app, "chaos", "kill-worker", "w1@a", "--yes", status=1).startswith("Error: ")
    assert found(app, "CG607") == []


def test_seconds_that_are_left_are_those_of_now(app: Celery, redis_db: RedisDB) -> None:
    beat = {"phase": "QUIET", "phase_since": 1.0, "seconds_left": 120.0, "ttl": 100.0}
    redis_db.client.sadd(WORKERS, "w1@a:01")
    for heard, left in {2: 118, 30: 90}.items():
        began = time.monotonic()
        redis_db.client.set(lease_key("w1@a:01"), json.dumps(beat), px=100_000 - heard * 1000)
        (stops,) = Operations(app).workers()
        took = time.monotonic() - began
        assert stops.seconds_left is not None
        assert left - 0.9 - took <= stops.seconds_left <= left


def test_why_of_a_batch_says_that_it_is_one(app: Celery) -> None:
    batch = Batch(app=app).apply_async([app.signature("shop:export")])
    said = command(app, "why", batch.id, status=1)
    assert "it is a batch, and no task" in said
    assert f"graceful batches show {batch.id}" in said


def test_many_findings_are_not_all_shown(app: Celery, redis_db: RedisDB) -> None:
    redis_db.client.sadd(WORKERS, "w1@a:01")
    redis_db.client.set(lease_key("w1@a:01"), json.dumps({"phase": "RUNNING"}), px=60_000)
    names = [f"queue-{number}" for number in range(30)]
    app.conf.task_queues = [KombuQueue(name) for name in names]
    for name in names:
        redis_db.client.rpush(name, "{}")
    assert len(document(app, "Status", "status", status=1)["findings"]) == 30
    lines = command(app, "status", status=1).splitlines()
    assert lines[-1] == "and 10 more, which --json has"
    assert sum(line.startswith("  -> ") for line in lines) == 20


def test_why_waits_once_for_a_rabbitmq_that_hangs(
    redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes connections, and says nothing."""
    monkeypatch.setattr(asking, "BROKER_TIMEOUT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        url = f"amqp://127.0.0.1:{hangs.getsockname()[1]}//"
        app = Celery(broker=url, set_as_current=False)
        app.conf.graceful_store = redis_db.url
        found = Operations(app, wait=0.1).why("1")
        hangs.settimeout(0.0)
        hangs.accept()[0].close()
        with pytest.raises(BlockingIOError):  # one time-out, not one of each look
            hangs.accept()
    assert "the broker does not answer: " in found.sentences[1]
