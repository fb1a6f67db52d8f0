"""Redis comes back empty: what runs goes on and counts, and what goes back does so from memory."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack

import pytest
from celery import Celery

from tests.servers import RedisServer
from tests.support.raw import raw_messages
from tests.support.workers import TIMEOUT, Worker, wait_until

#: What a worker says that has registered again, with how many messages.
AGAIN = r"Redis has lost its data .* with the (\d+) messages"


@pytest.fixture
def app(redis_db):
    with Celery("claims", broker=redis_db.url, backend=redis_db.backend_url) as app:
        yield app


@pytest.fixture
def start(redis_db):
    """Starts workers, and ends them after the test."""
    with ExitStack() as stack:

        def start(pool="prefork", concurrency=2, **env):
            env = {
                "BROKER_URL": redis_db.url,
                "RESULT_URL": redis_db.backend_url,
                "GRACE": "120",
                "CONF_graceful_lease_ttl": "60",  # of who lives
                "CONF_graceful_heartbeat_interval": "0.5",
                "CONF_worker_prefetch_multiplier": "2",
                **env,
            }
            worker = Worker("tests.apps.claims", pool=pool, concurrency=concurrency, env=env)
            return stack.enter_context(worker)

        yield start


def send(app, name, *args, **options):
    return app.send_task(name, args, **options)


def on(server):
    """The environment of a worker on a server of its own."""
    return {
        "BROKER_URL": server.url(0),
        "RESULT_URL": server.url(1),
        "GRACE": "60",
        "CONF_graceful_lease_ttl": "10",
        "CONF_graceful_heartbeat_interval": "0.5",
        "CONF_worker_prefetch_multiplier": "1",
    }


def claimed(db):
    return sum(db.client.hlen(key) for key in db.client.keys("graceful:claims:*"))


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_flush_costs_no_running_task_anything(pool, start, app, redis_db, tmp_path):
    """Its result was thrown away, or the task interrupted, and the message was nowhere."""
    # Solo fetches nothing while it runs something.
    room, waiting = (1, 0) if pool == "solo" else (2, 1)
    worker = start(pool, room).ready()
    held = [send(app, name, str(tmp_path / "go")) for name in ["hold", "hold_plain"][:room]]
    worker.wait_line(">> .* started", room)
    held += [send(app, "nap", 0.01) for _ in range(waiting)]
    worker.wait_line(r"Task .* received", room + waiting)
    redis_db.client.flushall()
    worker.wait_line(AGAIN)
    assert claimed(redis_db) == room + waiting
    (tmp_path / "go").touch()
    for result in held:
        assert result.get(timeout=TIMEOUT) == result.id
    wait_until(lambda: not claimed(redis_db), "all acknowledged")

    back = [send(app, "nap", 60) for _ in range(room)]
    worker.wait_line(">> .* started", room + len(held))
    back += [send(app, "nap", 60) for _ in range(waiting)]
    worker.wait_line(r"Task .* received", 2 * len(held))
    redis_db.client.flushall()
    worker.term()
    assert worker.wait() == 0
    assert raw_messages(redis_db.client).keys() == {result.id for result in back}
    assert redis_db.client.llen("celery") == len(back)
    assert not claimed(redis_db)
    assert worker.count("lease ran out|taken for dead|lease_lost") == 0
    for result in held:
        assert worker.count(f">> .* started {result.id}") == 1


def test_a_worker_that_slept_through_a_flush(start, app, redis_db, tmp_path):
    """Others have begun a new epoch without it; but nobody has its messages."""
    frozen = start(CONF_graceful_lease_ttl="12").ready()
    results = [send(app, name, str(tmp_path / "go")) for name in ("hold", "hold_plain")]
    frozen.wait_line(">> .* started", 2)
    os.killpg(frozen.pid, signal.SIGSTOP)
    wait_until(lambda: not redis_db.client.keys("graceful:lease:*"), "its lease ran out")
    redis_db.client.flushall()
    other = start("solo", 1).ready()
    wait_until(lambda: redis_db.client.exists("graceful:workers"), "a new epoch")
    (tmp_path / "go").touch()
    os.killpg(frozen.pid, signal.SIGCONT)
    for result in results:
        assert result.get(timeout=TIMEOUT) == result.id
    frozen.wait_line(AGAIN)
    wait_until(lambda: not claimed(redis_db), "all acknowledged")
    assert frozen.count(">> .* started") == 2
    assert frozen.count("lease ran out") == 0
    assert other.count(">> .* started|Rescued") == 0


def test_a_server_that_comes_back_empty(start_server, tmp_path):
    """It was away for longer than the lease."""
    server = start_server(RedisServer)
    with Celery("claims", broker=server.url(0), backend=server.url(1)) as app, ExitStack() as stack:
        workers, results = [], []
        for pool in ("prefork", "threads"):
            worker = Worker("tests.apps.claims", pool=pool, concurrency=1, env=on(server))
            workers.append(stack.enter_context(worker))
            results.append(send(app, "hold", str(tmp_path / "go")))
            worker.wait_line(">> .* started")
        server.kill()
        app.close()
        for worker in workers:
            worker.wait_line("The store .* does not work")
        server.start()
        for worker in workers:
            worker.wait_line(AGAIN)
        # Its claims are claims again: who dies now is rescued.
        dead, alive = workers
        os.killpg(dead.pid, signal.SIGKILL)
        dead.wait()
        (tmp_path / "go").touch()
        # Asked for: `get()` of a client that connects again may miss what is said meanwhile.
        wait_until(lambda: {one.state for one in results} == {"SUCCESS"}, "they have ended")
        results.clear()  # they want to say when they are gone, and the server is there to hear it
        alive.term()
        assert alive.wait() == 0
        assert alive.count(">> .* started") == 2
        assert alive.count("lease ran out") == 0
        with server.client() as client:
            assert client.llen("celery") == 0
            assert not client.keys("graceful:claims:*")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_server_that_starts_from_its_last_snapshot(pool, start_server, tmp_path):
    """What was sent since is nowhere but in its workers: it ends, or goes back."""
    server = start_server(RedisServer, options={"save": "3600 1"})
    app = Celery("claims", broker=server.url(0), backend=server.url(1))
    worker = Worker("tests.apps.claims", pool=pool, concurrency=2, env=on(server))
    with app, worker.ready():
        with server.client() as client:
            # It is registered a moment after it is ready, and has met the server.
            wait_until(lambda: client.hget("graceful:epoch", "server"), "it is registered")
            client.save()
        ends = send(app, "hold", str(tmp_path / "go")).id
        goes_back = send(app, "nap", 600).id
        worker.wait_line(">> .* started", 2)
        server.kill()
        app.close()
        worker.wait_line("The store .* does not work")
        server.start()
        worker.wait_line("Redis was started again.* with the 2 messages")
        (tmp_path / "go").touch()
        wait_until(lambda: app.AsyncResult(ends).state == "SUCCESS", "its result counts")
        worker.term()
        assert worker.wait() == 0
        assert worker.count("lease ran out|has lost its data") == 0
        with server.client() as client:
            assert raw_messages(client).keys() == {goes_back}
            assert client.llen("celery") == 1
            assert not client.keys("graceful:claims:*")
