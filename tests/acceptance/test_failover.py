"""Claims, lease and rescue are where the worker consumes: split URLs, and lists of servers."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack

import pytest
from celery import Celery

from tests.servers import RedisServer
from tests.support.broker import graceful_command
from tests.support.workers import TIMEOUT, Worker, end_leases, wait_until

QUICK = {
    "GRACE": "16",
    "CONF_graceful_hard_deadline": "3",  # much room after it: the machine may be slow
    "CONF_graceful_lease_ttl": "10",
    "CONF_graceful_heartbeat_interval": "0.5",
    "CONF_graceful_rescue_interval": "0.5",
    "CONF_worker_prefetch_multiplier": "2",
}


@pytest.fixture
def start(redis_db):
    """Starts workers of one broker URL, or of one to read from and one to write to."""
    with ExitStack() as stack:

        def start(url, write="", pool="prefork", **env):
            env = {"BROKER_URL": url, "RESULT_URL": redis_db.backend_url, **QUICK, **env}
            if write:
                env["CONF_broker_read_url"], env["CONF_broker_write_url"] = repr(url), repr(write)
                env["BROKER_URL"] = "memory://"
            return stack.enter_context(Worker("tests.apps.claims", pool=pool, env=env))

        yield start


@pytest.fixture
def send(redis_db):
    """Sends a task to one broker."""
    with ExitStack() as stack:

        def send(url, name, *args):
            backend = redis_db.backend_url
            app = stack.enter_context(Celery(broker=url, backend=backend, set_as_current=False))
            return app.send_task(name, args)

        yield send


def kill(worker, db):
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    end_leases(db.client, worker)


def claims(client):
    return {key: client.hlen(key) for key in client.keys("graceful:claims:*")}


@pytest.mark.parametrize("write", ["redis", "rabbitmq"])
def test_read_from_redis_write_elsewhere(
    write, start, send, redis_db, redis_server, rabbit_vhost, tmp_path
):
    """Plain Celery runs what is sent to the broker that it reads from, and so do we."""
    number = redis_server.fresh_db()
    other = redis_server.url(number) if write == "redis" else rabbit_vhost.url
    worker = start(redis_db.url, other).ready()
    result = send(redis_db.url, "hold", str(tmp_path / "go"))
    worker.wait_line(">> .* started")
    assert list(claims(redis_db.client).values()) == [1]
    with redis_server.client(number) as client:
        assert not client.keys("graceful:*")
    kill(worker, redis_db)
    second = start(redis_db.url, other)
    second.wait_line(">> .* started")
    (tmp_path / "go").touch()
    assert result.get(timeout=TIMEOUT) == result.id
    second.term()
    assert second.wait() == 0
    assert not claims(redis_db.client)


def test_read_from_rabbitmq_write_to_redis(start, send, redis_db, rabbit_vhost, tmp_path):
    """Nothing is claimed, and the broker itself gives back."""
    worker = start(rabbit_vhost.url, redis_db.url).ready()
    result = send(rabbit_vhost.url, "hold", str(tmp_path / "go"))
    worker.wait_line(">> .* started")
    assert not claims(redis_db.client)
    worker.term()
    assert worker.wait() == 0
    wait_until(lambda: rabbit_vhost.queue_length("celery") == 1, "the broker has seen it leave")
    (tmp_path / "go").touch()
    start(rabbit_vhost.url, redis_db.url)
    assert result.get(timeout=TIMEOUT) == result.id


def test_the_first_of_the_list_is_dead(start, send, redis_db, tmp_path):
    """Its tasks run, are rescued, and keep their checkpoints, on the second."""
    urls = f"redis://127.0.0.1:1/0;{redis_db.url}"
    worker = start(urls).ready()
    result = send(redis_db.url, "hold", str(tmp_path / "go"))
    worker.wait_line(">> .* started")
    kill(worker, redis_db)
    # It may have looked for dead ones itself, a moment before, which keeps others away.
    wait_until(lambda: not redis_db.client.exists("graceful:rescuer"))
    # Of one that has just started, an expired lease says nothing.
    wait_until(lambda: redis_db.client.info("server")["uptime_in_seconds"] > 11)
    env = {"BROKER_URL": urls}
    assert "1 went back" in graceful_command("tests.apps.claims", "rescue", env=env, status=1)
    listed = graceful_command("tests.apps.claims", "quarantine", "list", env=env)
    assert listed == "nothing is in quarantine\n"
    (tmp_path / "go").touch()
    start(urls)
    assert result.get(timeout=TIMEOUT) == result.id


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_over_to_the_next_and_back(pool, start, send, start_server, tmp_path):
    """What was claimed on a server that went away is acknowledged, or given back, there."""
    first, second = (start_server(RedisServer, appendonly=True) for _ in range(2))
    go, urls = tmp_path / "go", f"{first.url()};{second.url()}"
    worker = start(urls, pool=pool).ready()
    running = [send(first.url(), "hold", str(go)) for _ in range(2)]
    worker.wait_line(">> .* started", 2)
    if pool != "gevent":  # a full pool of greenlets fetches nothing
        waiting = send(first.url(), "hold", 0)
        worker.wait_line(rf"{waiting.id}\] received")
    first.kill()
    worker.wait_line(rf"Connected to redis://.*:{second.port}/")
    with second.client() as client:
        wait_until(lambda: client.smembers("graceful:workers"), "a member of the second")
    first.start()
    go.touch()
    for result in running:
        assert result.get(timeout=TIMEOUT) == result.id
    again = send(second.url(), "hold", 0)
    assert again.get(timeout=TIMEOUT) == again.id
    with first.client() as client:
        wait_until(lambda: not claims(client), "acknowledged, or given back, on the first")
        wait_until(lambda: not client.smembers("graceful:workers"), "no member there any more")
        assert client.llen("celery") == (pool != "gevent")
    second.kill()
    back = send(first.url(), "hold", 0)
    assert back.get(timeout=TIMEOUT) == back.id
    if pool != "gevent":
        assert waiting.get(timeout=TIMEOUT) == waiting.id
    worker.term()
    assert worker.wait() == 0
    for result in running:
        assert worker.count(f">> .* started {result.id}") == 1
    with first.client() as client:
        assert not claims(client)
        assert not client.smembers("graceful:workers")
        assert client.llen("celery") == 0
