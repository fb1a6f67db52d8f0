"""Chords of real workers, in the ledger: each ends, and its body runs once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, chord, group

from celery_graceful import Graceful
from celery_graceful.batches.ledger import INDEX, BatchLedger
from celery_graceful.batches.model import State
from celery_graceful.store.app_stores import find_store
from tests.conftest import RedisDB
from tests.support.workers import ROOT, TIMEOUT, Worker, end_leases, wait_until

POOLS = ("prefork", "threads", "gevent")

#: A worker that is gone is found in a moment: its lease is ended by hand.
TUNED = {
    "CONF_graceful_track_chords": "True",
    "CONF_graceful_lease_ttl": "10.0",
    "CONF_graceful_heartbeat_interval": "0.2",
    "CONF_graceful_rescue_interval": "0.2",
}


def worker(db: RedisDB, pool: str, **env: str) -> Worker:
    env = {"BROKER_URL": db.url, "RESULT_URL": db.backend_url, **TUNED, **env}
    return Worker("tests.apps.chords", pool=pool, env=env)


@pytest.fixture
def client(redis_db: RedisDB) -> Celery:
    app = Celery("client", broker=redis_db.url, backend=redis_db.backend_url, set_as_current=False)
    app.conf.graceful_track_chords = True
    Graceful(app)
    return app


def do(app: Celery, name: str, *args: Any, **options: Any) -> Any:
    return app.signature(name, args=args, **options)


def ended(app: Celery, result: Any) -> None:
    """Its ledger says so; nothing is left in the outbox."""
    store = find_store(app)
    assert store is not None
    ledger = BatchLedger(store)
    wait_until(
        lambda: ledger.status(result.parent.id).state is State.DONE,
        f"the end of chord {result.parent.id}",
    )
    assert ledger.outbox() == []


def unfinished(app: Celery) -> list[str]:
    """Chords and groups that have not ended."""
    store = find_store(app)
    assert store is not None
    left: list[str] = store.execute("ZRANGE", [INDEX], [0, -1])
    return left


def held(redis_db: RedisDB) -> int:
    """Messages that workers have claimed."""
    client = redis_db.client
    return sum(client.hlen(key) for key in client.keys("graceful:claims:*"))


@pytest.mark.parametrize("pool", POOLS)
def test_a_dispatcher_that_is_killed(
    pool: str, client: Celery, redis_db: RedisDB, tmp_path: Path
) -> None:
    """Between its decision to send the body and the sending: that is done when its header is."""
    hold = tmp_path / "hold"
    hold.touch()
    with worker(redis_db, pool, HOLD=str(hold)) as first:
        first.ready()
        result = chord([do(client, "part", i) for i in range(4)], do(client, "total")).apply_async()
        first.wait_line(">> .* dispatches")
        # Before Celery 5.7 a part that is not acknowledged yet, and runs again, counts twice.
        wait_until(lambda: held(redis_db) == 1, "the other parts are acknowledged")
        first.signal(signal.SIGKILL, group=True)
        first.wait()
        end_leases(redis_db.client)
    hold.unlink()
    with worker(redis_db, pool) as second:
        assert result.get(timeout=TIMEOUT) == 6
        ended(client, result)
        assert second.count(">> .* total 0 1 2 3") == 1


@pytest.mark.parametrize("pool", POOLS)
def test_one_that_is_frozen_is_sent_again_at_once(
    pool: str, client: Celery, redis_db: RedisDB
) -> None:
    """Its tasks have the ids that they had, and the ledger hears of their ends a moment later."""
    again = chord([do(client, "part", i) for i in range(4)], do(client, "total"))
    again.freeze()
    with worker(redis_db, pool) as one:
        one.ready()
        for times in range(1, 11):
            result = again.apply_async()
            one.wait_line(">> .* total 0 1 2 3", times)
            assert result.get(timeout=TIMEOUT) == 6
        ended(client, result)
        assert one.count(">> .* total 0 1 2 3") == times


@pytest.mark.parametrize("pool", POOLS)
def test_what_chords_are_made_of(pool: str, client: Celery, redis_db: RedisDB) -> None:
    """Chains, chords in chains, groups at the end of a chain, bodies that are chains or groups."""
    header = [
        do(client, "part", 1),
        chain(do(client, "part", 2), do(client, "part")),
        chain(
            do(client, "part", 3),
            group(do(client, "part"), do(client, "part")),
            do(client, "total"),
        ),
    ]
    with worker(redis_db, pool) as one:
        one.ready()
        result = chord(header, do(client, "total")).apply_async()
        assert result.get(timeout=TIMEOUT) == 9
        ended(client, result)
        body = chain(do(client, "total"), do(client, "part"))
        result = chord([do(client, "part", 1), do(client, "part", 2)], body).apply_async()
        assert result.get(timeout=TIMEOUT) == 3
        wait_until(lambda: not unfinished(client), "the end of it")
        body = group(do(client, "total"), do(client, "total"))
        result = chord([do(client, "part", 4), do(client, "part", 5)], body).apply_async()
        assert result.get(timeout=TIMEOUT) == [9, 9]
        wait_until(lambda: not unfinished(client), "the end of it")
        sig = do(client, "total").on_error(do(client, "errback"))
        result = chord([do(client, "part", 6), do(client, "fails")], sig).apply_async()
        one.wait_line(">> .* errback")
        ended(client, result)
        assert one.count(">> .* errback") == 1


@pytest.mark.parametrize("backend", ["db+sqlite:///{}/results", "file://{}"])
def test_a_backend_that_counts_nothing(backend: str, redis_db: RedisDB, tmp_path: Path) -> None:
    """The ledger has the body sent; nobody polls as well."""
    url = backend.format(tmp_path)
    app = Celery("client", broker=redis_db.url, backend=url, set_as_current=False)
    app.conf.graceful_track_chords = True
    Graceful(app)
    with worker(redis_db, "threads", RESULT_URL=url) as one:
        one.ready()
        body = group(do(app, "total"), do(app, "total"))
        chord([do(app, "part", 4), do(app, "part", 5)], body).apply_async()
        sig = do(app, "total").on_error(do(app, "errback"))
        chord([do(app, "part", 6), do(app, "fails")], sig).apply_async()
        result = chord([do(app, "part", i) for i in range(4)], do(app, "total")).apply_async()
        one.wait_line(">> .* total 0 1 2 3")
        assert result.get(timeout=TIMEOUT) == 6
        one.wait_line(">> .* errback")
        one.wait_line(">> .* total 4 5", count=2)
        wait_until(lambda: not unfinished(app), "the end of all")
        # In a chord inside of a header, Celery's own task polls.
        inner = chord([do(app, "part", 7), do(app, "part", 8)], do(app, "total"))
        chord([inner, do(app, "part", 9)], do(app, "total")).apply_async()
        one.wait_line(">> .* total 15 9")
        wait_until(lambda: not unfinished(app), "the end of that one")
        # Where a chain ends in a group, too: no task says when that has ended.
        inner = chain(do(app, "part", 7), group(do(app, "part"), do(app, "part")))
        result = chord([inner, do(app, "part", 9)], do(app, "part")).apply_async()
        assert result.get(timeout=TIMEOUT) == [[7, 7], 9]
        assert not unfinished(app)
        group(inner, do(app, "part", 9)).apply_async().get(timeout=TIMEOUT)
        wait_until(lambda: not unfinished(app), "the end of a group")
        assert one.count(">> .* total") == 5
        assert one.count(">> .* errback") == 1
        assert one.count("celery.chord_unlock.* received") >= 1
        assert one.count("its body was not sent") == 0
        assert redis_db.client.llen("celery") == 0


def test_those_of_a_database(redis_db: RedisDB, client: Celery, tmp_path: Path) -> None:
    """Its counter forgets the chord before the body is sent: a kill then leaves it pending."""
    pytest.importorskip("django_celery_results")
    hold, database = tmp_path / "hold", tmp_path / "database"
    env = {"BROKER_URL": redis_db.url, "DATABASE": str(database), **TUNED}
    run = partial(subprocess.run, check=True, timeout=TIMEOUT, cwd=ROOT, env={**os.environ, **env})
    run([sys.executable, "-m", "tests.apps.django_chords"])
    send = "from tests.apps.django_chords import *; from celery import chord;"
    send += "chord([part.s(i) for i in range(4)], total.s()).apply_async()"
    hold.touch()
    run([sys.executable, "-c", send])
    # SQLite refuses who writes while another one does.
    start = partial(Worker, "tests.apps.django_chords", concurrency=1)
    with start(env={**env, "HOLD": str(hold)}) as first:
        first.wait_line(">> .* dispatches")
        first.signal(signal.SIGKILL, group=True)
        first.wait()
        end_leases(redis_db.client)
    with start(env=env) as second:
        second.wait_line(">> .* total 0 1 2 3")
        run([sys.executable, "-c", send])
        second.wait_line(">> .* total 0 1 2 3", count=2)
        wait_until(lambda: not unfinished(client), "their ends")
        assert second.count(">> .* total") == 2


def test_tasks_of_celery_batches(redis_db: RedisDB, client: Celery) -> None:
    """They gather calls as ever, and each call is a member."""
    pytest.importorskip("celery_batches", reason="`make test` installs it, without its bounds")
    env = {"BROKER_URL": redis_db.url, "RESULT_URL": redis_db.backend_url, **TUNED}
    with Worker("tests.apps.celery_batches", pool="threads", env=env) as one:
        one.ready()
        group(do(client, "gathers", i) for i in range(6)).apply_async()
        one.wait_line(">> .* gathered", count=2)
        wait_until(lambda: not unfinished(client), "the end of all calls")
        assert sorted(
            word for found in one.find(">> .* gathered (.*)") for word in found[1].split()
        ) == list("012345")
