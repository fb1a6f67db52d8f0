"""The moments that the history keeps, each where it happens, by real workers of each pool."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from celery_graceful import Batch, Graceful
from celery_graceful.history.entry import FLEET
from celery_graceful.operations import Operations
from celery_graceful.operations.records import Moment
from tests.conftest import RabbitVhost, RedisDB
from tests.support import operators
from tests.support.workers import Worker, end_leases, wait_until

#: A way to interrupt each, and a way to be asked where they stand.
POOLS = ["prefork", "threads", "gevent", "solo"]

#: Of who is frozen it is ended by hand: no machine is so busy that it runs out.
LEASE = {"CONF_graceful_lease_ttl": "30.0", "CONF_graceful_rescue_interval": "0.5"}


def moments(app: Celery, task_id: str) -> list[Moment]:
    return list(Operations(app).history(task_id).moments)


def only(app: Celery, task_id: str, kind: str) -> Moment:
    """The moment of that kind: there is one."""
    (found,) = (each for each in moments(app, task_id) if each.kind == kind)
    return found


@pytest.fixture(params=["redis", "rabbitmq"])
def app(request: pytest.FixtureRequest, redis_db: RedisDB) -> Iterator[Celery]:
    """Of a Redis, or of RabbitMQ with one as the store."""
    if request.param == "rabbitmq":
        vhost: RabbitVhost = request.getfixturevalue("rabbit_vhost")
        app = operators.make_app(vhost.url, redis_db.backend_url)
        app.conf.graceful_store = redis_db.url
    else:
        app = operators.make_app(redis_db.url, redis_db.backend_url)
    yield app
    app.close()


def start(app: Celery, name: str, pool: str = "prefork", **env: str) -> Worker:
    store = app.conf.get("graceful_store")
    more = {"CONF_graceful_store": repr(store)} if store else {}
    return operators.start(app, name, pool, **LEASE, **more, **env)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "app"),
    [*((pool, "redis") for pool in POOLS), ("prefork", "rabbitmq")],
    indirect=["app"],
)
def test_given_up(pool: str, app: Celery, redis_db: RedisDB) -> None:
    """It is written before the process leaves, which waits for nothing else then."""
    with start(app, "one@test", pool, GRACE="60") as one:
        one.ready()
        operators.send(app, "stubborn", "holds")
        one.wait_line(">> .* stubborn")
        assert not list(redis_db.client.scan_iter(f"{FLEET}*")), "nothing is unusual yet"
        one.signal(signal.SIGQUIT)
        assert one.wait() == 0
        assert one.count("Stopped: 0 finished, 0 interrupted, 1 given up") == 1
    found = only(app, "holds", "given_up")
    assert (found.task, found.worker) == (f"{operators.APP}.stubborn", "one@test")
    assert found.reason == "hard deadline"
    # A machine that is busy may not have the time to look where it stands.
    assert re.fullmatch(r"|\w+\.py:\d+ \(\w+\)", found.where)
    assert found.where or pool in ("prefork", "spawn") or "does not say" in one.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "app"),
    [*((pool, "redis") for pool in POOLS), ("prefork", "rabbitmq")],
    indirect=["app"],
)
def test_interrupted_released_and_resumed(pool: str, app: Celery) -> None:
    with start(app, "one@test", pool, GRACE="60") as one:
        one.ready()
        operators.send(app, "count", "counts", 10**6)
        wait_until(lambda: Operations(app).checkpoint("counts"), "it has saved")
        operators.send(app, "short", "waits", 1, countdown=3600)
        if pool != "solo":  # it reads the next one when it has ended
            one.wait_line(r"\[waits\] received")
        one.term()
        assert one.wait() == 0
    stopped = only(app, "counts", "interrupted")
    assert (stopped.worker, stopped.reason) == ("one@test", "shutdown")
    assert re.fullmatch(r"at \d+ of loop", stopped.where)
    if pool != "solo":
        released = only(app, "waits", "released")
        assert (released.worker, released.reason) == ("one@test", "shutdown")
    with start(app, "two@test", pool, GRACE="60") as two:
        two.ready()
        wait_until(lambda: "resumed" in {m.kind for m in moments(app, "counts")}, "it goes on")
        resumed = only(app, "counts", "resumed")
        assert (resumed.worker, resumed.where) == ("two@test", stopped.where)
        two.term()
        assert two.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("app", ["redis"], indirect=True)
def test_died_rescued_and_fenced(pool: str, app: Celery, redis_db: RedisDB) -> None:
    """Frozen for longer than its lease: others run it, and its own run ends for nothing."""
    with start(app, "one@test", pool, GRACE="60") as one:
        one.ready()
        operators.send(app, "count", "counts", 10**6)
        wait_until(lambda: [c.begun for c in Operations(app).claims()] == [True], "it is noted")
        with start(app, "two@test", pool, GRACE="60") as two:
            two.ready()
            one.signal(signal.SIGSTOP, group=True)
            end_leases(redis_db.client, one)
            wait_until(lambda: "rescued" in {m.kind for m in moments(app, "counts")}, "rescued")
            rescued = only(app, "counts", "rescued")
            assert (rescued.worker, rescued.reason) == ("one@test", "given back by two@test")
            assert only(app, "counts", "died").worker == "one@test"
            one.signal(signal.SIGCONT, group=True)
            wait_until(lambda: "fenced" in {m.kind for m in moments(app, "counts")}, "fenced")
            fenced = only(app, "counts", "fenced")
            assert (fenced.worker, fenced.task) == ("one@test", f"{operators.APP}.count")
            two.term()
            assert two.wait() == 0


def _site(redis_db: RedisDB) -> Celery:
    app = Celery("ghost", broker=redis_db.url, backend=redis_db.backend_url, set_as_current=False)
    Graceful(app)
    return app


def _ghost(redis_db: RedisDB, **env: str) -> Worker:
    urls = {"BROKER_URL": redis_db.url, "RESULT_URL": redis_db.backend_url, "GRACE": "60"}
    return Worker("tests.apps.ghost", pool="threads", hostname="one@test", env={**urls, **env})


@pytest.mark.slow
@pytest.mark.parametrize("repair", [None, "off"])
def test_missing_and_resent(repair: str | None, redis_db: RedisDB) -> None:
    """A member whose message somebody has deleted: sent again by a worker, or by hand."""
    app = _site(redis_db)
    batch = Batch(app=app).apply_async([app.signature("ghost.nap", (0,))])
    (member,) = redis_db.client.smembers(f"graceful:batch:{batch.id}:pending")
    redis_db.client.delete("celery")
    looks = {"CONF_graceful_batch_missing_after": "1", "CONF_graceful_batch_repair": repr(repair)}
    with _ghost(redis_db, **looks) as worker:
        worker.ready()
        wait_until(lambda: "missing" in {m.kind for m in moments(app, member)}, "it is missed")
        missing = only(app, member, "missing")
        assert (missing.worker, batch.id in missing.reason) == ("one@test", True)
        if repair == "off":
            assert Operations(app).batches.resend(batch.id).resent == (member,)
        wait_until(lambda: batch.status().finished, "it has ended")
        resent = only(app, member, "resent")
        assert (resent.task, resent.reason) == ("ghost.nap", f"of batch {batch.id}")
        assert resent.worker == ("" if repair else "one@test"), "by whom, or by hand"
        worker.term()
        assert worker.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "app"),
    [("prefork", "redis"), ("spawn", "redis"), ("prefork", "rabbitmq")],
    indirect=["app"],
)
def test_quarantined_and_sent_again(pool: str, app: Celery) -> None:
    urls = {"BROKER_URL": app.conf.broker_url, "RESULT_URL": app.conf.result_backend}
    store: Any = app.conf.get("graceful_store")
    more = {"CONF_graceful_store": repr(store)} if store else {}
    env = {**urls, **more, **LEASE, "CONF_graceful_poison_limit": "1", "GRACE": "60"}
    task = app.signature("tests.apps.poison.dying", ("kill",))
    with Worker("tests.apps.poison", pool=pool, hostname="one@test", env=env) as worker:
        worker.ready()
        task.apply_async(task_id="kills")
        worker.wait_line(">> .* quarantined kills")
        found = only(app, "kills", "quarantined")
        assert (found.task, found.worker) == ("tests.apps.poison.dying", "one@test")
        assert found.reason.startswith("the process that ran it died")
        died = only(app, "kills", "died")
        assert (died.worker, "SIGKILL" in died.reason) == ("one@test", True)
        worker.term()
        assert worker.wait() == 0
    assert Operations(app).quarantine.retry("kills").ok
    assert only(app, "kills", "resent").reason == "from quarantine, by hand"
