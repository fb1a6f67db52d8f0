"""Checkpoints with real workers: when they go, and what limits do."""

from __future__ import annotations

import pytest
from celery import Celery

from tests.support.workers import TIMEOUT, Worker, wait_until

PATTERN = "graceful:checkpoint:*"


@pytest.fixture(params=["redis", "rabbitmq"])
def broker_url(request, redis_db):
    if request.param == "redis":
        return redis_db.url
    return request.getfixturevalue("rabbit_vhost").url


def worker(url, redis_db, pool="prefork", concurrency=1, **env):
    env = {"BROKER_URL": url, "RESULT_URL": redis_db.url, "GRACE": "20", **env}
    env.setdefault("CONF_worker_prefetch_multiplier", "1")
    return Worker("tests.apps.resuming", pool=pool, concurrency=concurrency, env=env)


def client(url, redis_db):
    app = Celery("resuming", broker=url, backend=redis_db.url)
    app.conf.broker_connection_timeout = TIMEOUT
    return app


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_checkpoint_goes_with_its_task(pool, redis_db):
    url = redis_db.url
    app = client(url, redis_db)

    def send(how, **options):
        return app.send_task("tests.apps.resuming.ending", [how], task_id=how, **options)

    def gone():
        return not redis_db.client.keys(PATTERN)

    with worker(url, redis_db, pool, 2) as w:
        w.ready()
        assert send("success").get(timeout=TIMEOUT) is False
        wait_until(gone)
        send("ignore")
        w.wait_line("saved ignore")
        wait_until(gone)
        with pytest.raises(ValueError, match="failure"):
            send("failure").get(timeout=TIMEOUT)
        wait_until(gone)
        # Kept over the retry.
        assert send("retry").get(timeout=TIMEOUT) is True
        wait_until(gone)
        send("retry, and return")
        w.wait_line("retry, and return.*succeeded.*True")
        wait_until(gone)
        # Asked for before its run begins, it is the same.
        asked = app.send_task("tests.apps.resuming.asks_early")
        assert asked.get(timeout=TIMEOUT) == 23
        assert w.count(">> .* item") == 4
        assert w.count(">> .* before None False 0") == w.count(">> .* before 11 True 0") == 1
        wait_until(gone)
        # What replaces a task has its id, and work of its own.
        pages = app.send_task("tests.apps.resuming.pages", [1, 4])
        assert pages.get(timeout=TIMEOUT) is False
        assert w.count(">> .* item") == 16
        wait_until(gone)
        if pool == "prefork":
            send("time limit", time_limit=3)
            w.wait_line("saved time limit|TimeLimitExceeded")  # a busy machine saves too late
            wait_until(gone)
            send("terminate")
            w.wait_line("saved terminate")
            app.control.revoke("terminate", terminate=True)
            wait_until(gone)
        # Revoked before it starts: another run's, here made up.
        app.control.revoke("revoked", reply=True, timeout=TIMEOUT, limit=1)
        redis_db.client.hset("graceful:checkpoint:tests.apps.resuming.ending:revoked", "state", "1")
        send("revoked")
        wait_until(gone)
        w.term()
        assert w.wait() == 0


def test_the_end_of_one_leaves_the_other_of_its_id_all_that_it_has_saved(broker_url, redis_db):
    app, client_ = client(broker_url, redis_db), redis_db.client

    def send(how):
        return app.send_task("tests.apps.resuming.twin", [how], task_id="one")

    with worker(broker_url, redis_db, "threads", 2) as w:
        w.ready()
        result = send("stays")
        w.wait_line("stays")
        send("goes")  # goes on from what that has saved, and deletes it
        wait_until(lambda: not client_.keys(PATTERN))
        assert w.count("charged") == 1
        w.term()
        assert w.wait() == 0
    assert client_.keys(PATTERN)
    with worker(broker_url, redis_db, "threads", 2) as w:
        w.wait_line(r"twin\[one\] succeeded")
        assert result.get(timeout=TIMEOUT) is None
        assert not w.count("charged")
        wait_until(lambda: not client_.keys(PATTERN))


EACH_POOL = pytest.mark.parametrize(
    ("pool", "broker_url"),
    [
        *((pool, "redis") for pool in ("prefork", "threads", "solo")),
        pytest.param("gevent", "redis", marks=pytest.mark.slow),
        *((pool, "rabbitmq") for pool in ("prefork", "solo")),
    ],
    indirect=["broker_url"],
)


@EACH_POOL
def test_what_is_sent_again_under_its_id_begins_anew(pool, broker_url, redis_db):
    """Also where it has waited behind the first one: the checkpoint of that is still there."""
    app = client(broker_url, redis_db)
    for _ in range(4):
        app.send_task("tests.apps.resuming.again", task_id="one")
    with worker(broker_url, redis_db, pool, YIELD="60") as w:
        w.wait_line("again, resumed", count=4)
        assert w.count("again, resumed: False") == 4
        wait_until(lambda: not redis_db.client.keys(PATTERN))
        w.term()
        assert w.wait() == 0


@EACH_POOL
def test_max_run_time_lets_others_run(pool, broker_url, redis_db):
    app = client(broker_url, redis_db)
    long = app.send_task("tests.apps.resuming.long", [2.0])
    for number in range(3):
        app.send_task("tests.apps.resuming.short", [number])
    with worker(broker_url, redis_db, pool) as w:
        long.get(timeout=TIMEOUT)
        w.wait_line(r"short \d", count=3)
        order = [m[1] for m in w.find(r">> \S+ (short|long ended)")]
        assert order[0] == "short"
        assert order[-1] == "long ended"
        assert w.count("interrupted: it goes back") >= 3
        assert w.count("long ended 0") == 1
        wait_until(lambda: not redis_db.client.keys(PATTERN))
        w.term()
        assert w.wait() == 0
    assert not redis_db.client.hlen("unacked")
    assert not redis_db.client.llen("celery")


def test_what_is_acknowledged_at_its_start_goes_on_at_once(broker_url, redis_db):
    """It waits for no other one of its id to be over with."""
    app = client(broker_url, redis_db)
    result = app.send_task("tests.apps.resuming.early", [30])
    with worker(broker_url, redis_db, "threads", YIELD=str(10 * TIMEOUT)) as w:
        assert result.get(timeout=TIMEOUT) is None
        assert w.count("interrupted: it goes back") >= 3
        wait_until(lambda: not redis_db.client.keys(PATTERN))
        w.term()
        assert w.wait() == 0


def test_too_many_interruptions_is_a_failure(broker_url, redis_db):
    app = client(broker_url, redis_db)
    with worker(broker_url, redis_db) as w:
        w.ready()
        errback = app.signature("tests.apps.resuming.errback")
        result = app.send_task("tests.apps.resuming.touchy", link_error=errback)
        w.wait_line(r">> \S+ touchy")
        w.term()
        assert w.wait() == 0
        with pytest.raises(Exception, match="interrupted 1 times, max_interruptions is 0"):
            result.get(timeout=TIMEOUT)
    wait_until(lambda: not redis_db.client.keys(PATTERN))


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_being_given_up_counts(pool, redis_db):
    url = redis_db.url
    app = client(url, redis_db)
    with worker(url, redis_db, pool, CONF_graceful_hard_deadline="2.0") as w:
        w.ready()
        result = app.send_task("tests.apps.resuming.stubborn")
        w.wait_line(r">> \S+ stubborn")
        w.term()
        w.wait()
    assert result.state == "INTERRUPTED"
    with worker(url, redis_db, pool) as w, pytest.raises(Exception, match="interrupted 1 times"):
        result.get(timeout=TIMEOUT)
    assert not w.count(">> .* stubborn")
