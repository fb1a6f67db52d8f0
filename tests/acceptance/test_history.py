"""The history of tasks and of the fleet, by real workers; each moment where it happens."""

from __future__ import annotations

import re
import signal
from typing import Any

from click import unstyle

from celery_graceful.cli.history import lines_of
from celery_graceful.history.entry import FLEET, Entry, What, key_of
from celery_graceful.history.journal import OF_A_TASK, write
from celery_graceful.operations import Operations
from celery_graceful.operations.records import Moment
from celery_graceful.settings import Settings
from celery_graceful.store.app_stores import find_store
from tests.conftest import RedisDB
from tests.support.operators import APP, command, command_or, document, make_app, send, start
from tests.support.workers import end_leases, wait_until

#: Of the dead it is ended by hand: no machine is so busy that it runs out.
LEASE = {"CONF_graceful_lease_ttl": "10.0"}


def moments(operations: Operations, task_id: str) -> list[tuple[str, str]]:
    return [(each.kind, each.worker) for each in operations.history(task_id).moments]


def of_kind(operations: Operations, task_id: str, kind: str) -> Moment:
    return next(each for each in operations.history(task_id).moments if each.kind == kind)


def test_two_deploys(redis_db: RedisDB) -> None:
    app = make_app(redis_db.url, redis_db.backend_url)
    operations = Operations(app)
    with start(app, "one@test", **LEASE) as one:
        one.ready()
        for number in range(20):
            send(app, "short", f"ordinary-{number}", number)
        one.wait_line("short 19")
        send(app, "ending", "retried", "retry")
        one.wait_line("retried.* succeeded")
        assert not [*redis_db.client.scan_iter(f"{FLEET}*")], "nothing is unusual yet"
        assert command(app, "deploy", "mark", "v2").endswith("  deploy  v2\n")
        send(app, "count", "counts", 10**6)
        send(app, "short", "waits", 1)
        wait_until(lambda: len(list(operations.claims())) == 2, "both are claimed")
        wait_until(lambda: operations.checkpoint("counts", f"{APP}.count"), "it has saved")
        one.term()
        assert one.wait() == 0
    assert moments(operations, "waits") == [("released", "one@test")]
    stopped = of_kind(operations, "counts", "interrupted")
    assert (stopped.task, stopped.reason) == (f"{APP}.count", "shutdown")
    assert stopped.where.startswith("at ")
    assert stopped.where.endswith(" of loop")

    assert document(app, "Moment", "deploy", "mark", "v3")["kind"] == "deploy"
    with start(app, "two@test", **LEASE) as two:
        two.ready()
        wait_until(lambda: len(moments(operations, "counts")) == 2, "it has gone on")
        resumed = of_kind(operations, "counts", "resumed")
        assert (resumed.where, resumed.worker) == (stopped.where, "two@test")
        # What is not noted to have begun has not died of it, either.
        wait_until(lambda: [c.begun for c in operations.claims()].count(True), "it is noted")
        two.signal(signal.SIGKILL, group=True)
        two.wait()
    end_leases(redis_db.client)
    # It may have begun to look for others itself, a moment before.
    # Of none, while nobody knows whether Redis is as it was.
    wait_until(
        lambda: re.search(r"[1-9]\d* went back", command_or(app, "rescue")),
        "it is rescued",
        pause=0.1,
    )
    assert [kind for kind, _ in moments(operations, "counts")][2:] == ["died", "rescued"]

    app.control.purge()
    send(app, "stubborn", "holds")
    with start(app, "three@test", **LEASE) as three:
        three.wait_line(">> .* stubborn")
        three.signal(signal.SIGQUIT)
        assert three.wait() == 0
    given_up = of_kind(operations, "holds", "given_up")
    assert (given_up.worker, given_up.reason) == ("three@test", "hard deadline")
    _read(app, operations)


def _read(app: Any, operations: Operations) -> None:
    first, second = operations.history().deploys
    assert (first.text, first.counts) == ("v2", {"interrupted": 1, "released": 1})
    assert second.counts["given_up"] == 1
    found = document(app, "History", "history", "counts")
    assert (found["id"], found["deploys"]) == ("counts", [])
    fleet = document(app, "History", "history")
    assert [each["text"] for each in fleet["deploys"]] == ["v2", "v3"]
    said = command(app, "history").splitlines()
    assert max(map(len, said)) <= 80
    assert said[0].endswith("deploy  v2")
    assert said[1] == "  1 interrupted, 1 released"
    assert "earlier ones are left out" in command(app, "history", "--last", "1")
    assert "nothing unusual is known of never" in command(app, "history", "never", status=1)
    assert "last: " in command(app, "why", "counts", status=1)


def test_streams_are_bounded(redis_db: RedisDB) -> None:
    app = make_app(redis_db.url, redis_db.backend_url)
    store = find_store(app)
    assert store is not None
    settings = Settings(history_length=200, history_ttl=100.0)
    for start_at in range(0, 800, 100):
        some = [Entry(What.RELEASED, "one", at=start_at + n) for n in range(100)]
        write(store, settings, some)
    client = redis_db.client
    assert client.llen(key_of("one")) == OF_A_TASK
    assert client.memory_usage(key_of("one")) < 20_000
    assert client.xlen(FLEET) <= 200 + 100  # Redis trims by nodes of 100
    for key in (FLEET, key_of("one")):
        assert 0 < client.pttl(key) <= 100_000
    (*_, last) = Operations(app).history("one").moments
    assert last.at.timestamp() == 799
    app.conf.graceful_store = redis_db.url  # the same server by another name
    assert len(Operations(app).history("one").moments) == OF_A_TASK
    many = Entry(What.RESCUED, worker="w", reason="given back by v", count=1000, at=800)
    write(store, settings, [many])
    *_, head, said = map(unstyle, lines_of(Operations(app).history(), 80))
    assert head.endswith("rescued  1000 tasks")
    assert said == "  on w, given back by v"
