"""What has ended while Redis takes no writes, or is gone: nobody is told, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery, chain

from celery_graceful.operations import Operations
from celery_graceful.store.scripts import script
from tests.conftest import RabbitVhost, RedisDB
from tests.servers import RedisServer
from tests.support.distance import door
from tests.support.monitor import monitored
from tests.support.operators import make_app
from tests.support.workers import Worker, wait_until

#: It may not look for long; and it was heard a moment ago, when Redis is full.
LEASE = {"CONF_graceful_lease_ttl": "60.0", "GRACE": "60"}

#: Celery tries for 19 s by default.
NO_RETRIES = {
    "CONF_result_backend_transport_options": "{'retry_policy': {'max_retries': 0}}",
    "CONF_task_publish_retry": "False",
}

NAMES = ("late", "steady", "failing", "trying")

#: Where a message could not be sent, either: it runs again.
KEPT = "has ended, and that can be told to nobody"

HELD = "has ended .*, and that cannot be stored: its message is held"


def start(pool: str, broker: str, backend: str, **env: str) -> Worker:
    env = {"BROKER_URL": broker, "RESULT_URL": backend, **LEASE, **env}
    return Worker("tests.apps.untold", pool=pool, concurrency=8, env=env)


def send(app: Celery, gate: Path, *names: str) -> None:
    for name in names:
        app.send_task(name, [str(gate)], task_id=name)


def begun(app: Celery, *ids: str) -> bool:
    claims = {claim.id for claim in Operations(app).claims() if claim.begun}
    return claims.issuperset(ids)


def state(app: Celery, task_id: str) -> str:
    return str(app.backend.get_task_meta(task_id, cache=False)["status"])


def all_end_well(app: Celery, *ids: str) -> None:
    ends = dict.fromkeys(ids, "SUCCESS")
    if "failing" in ends:
        ends["failing"] = "FAILURE"
    wait_until(lambda: {each: state(app, each) for each in ids} == ends, f"{ends}", 0.1)
    wait_until(lambda: not list(Operations(app).claims()), "all is acknowledged")


def fill(server: RedisServer, full: bool = True) -> None:
    with server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1" if full else "0")


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_redis_that_is_full(
    pool: str, start_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """Results, a retry and the rest of a chain: plain Celery ends by it, or loses them."""
    server, gate = start_server(RedisServer), tmp_path / "go"
    app = make_app(server.url(0), server.url(1))
    names = ("late",) if pool == "solo" else NAMES
    with start(pool, server.url(0), server.url(1)) as worker:
        worker.ready()
        if pool != "solo":
            send(app, gate, *names[1:])
        first = app.signature("late", (str(gate),), task_id="late")
        chain(first, app.signature("follows", task_id="follows")).apply_async()
        wait_until(lambda: begun(app, *names), "all run")
        fill(server)
        gate.touch()
        again = [one for one in names if one in ("late", "trying")]
        worker.wait_line(KEPT, len(again))
        if again != [*names]:
            worker.wait_line(HELD, len(names) - len(again))
        assert {claim.id for claim in Operations(app).claims()} == {*names}
        assert worker.count(">> .* follows") == 0
        wait_until(lambda: not begun(app, "late"), "it does not run any more")
        why = Operations(app).why("late")
        assert (why.state, why.stuck, why.mend) == ("claimed", True, "doctor")
        assert "if it has ended, it runs again when that does" in why.sentences[0]
        with server.client() as client, monitored(client) as commands:
            fill(server, full=False)
            all_end_well(app, *names, "follows")
        moves = [command for command in commands if script("give_back").sha in command]
        assert len(moves) == 1, "all of them together"
        assert worker.count(">> .* started late") == 2
        assert worker.count(">> .* started steady") == len({*names} & {"steady"})
        assert worker.count(">> .* follows late") == 1
        (moment,) = Operations(app).history("late").moments
        assert (moment.kind, moment.reason) == ("released", "its end could not be stored")
        worker.term()
        assert worker.wait() == 0


def test_a_worker_that_stops_meanwhile(
    start_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """It does not wait for a Redis that is full; the next one runs what has ended."""
    server, gate = start_server(RedisServer), tmp_path / "go"
    app = make_app(server.url(0), server.url(1))
    with start("prefork", server.url(0), server.url(1)) as worker:
        worker.ready()
        send(app, gate, *NAMES)
        wait_until(lambda: begun(app, *NAMES), "all run")
        fill(server)
        gate.touch()
        worker.wait_line(KEPT)
        worker.wait_line(HELD, len(NAMES) - 1)
        worker.term()
        worker.wait_line("Stopped: 0 finished, 0 interrupted, 0 given up, 4 released")
        worker.wait()
    fill(server, full=False)
    with start("prefork", server.url(0), server.url(1)) as worker:
        all_end_well(app, *NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_redis_that_is_gone(
    pool: str, start_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """For longer than Celery tries to store a result."""
    server, gate = start_server(RedisServer, appendonly=True), tmp_path / "go"
    app = make_app(server.url(0), server.url(1))
    with start(pool, server.url(0), server.url(1), **NO_RETRIES) as worker:
        worker.ready()
        send(app, gate, "late", "steady")
        wait_until(lambda: begun(app, "late", "steady"), "both run")
        server.kill()
        worker.wait_line("The store .* does not work")
        gate.touch()
        if pool == "prefork":
            # The main process hears of that when it is connected again.
            worker.wait_line("succeeded in", 2)
            worker.wait_line("Trying again in 4.00 seconds")
        else:
            worker.wait_line(HELD, 2)
        server.start()
        worker.wait_line(HELD, 2)
        all_end_well(app, "late", "steady")
        worker.term()
        assert worker.wait() == 0
    assert worker.count(">> .* started") == 2


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_only_results_are_full(
    pool: str, start_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """It ends at once: else the worker would take nothing new for as long as they are."""
    broker, results = start_server(RedisServer), start_server(RedisServer)
    app, gate = make_app(broker.url(0), results.url(0)), tmp_path / "go"
    with start(pool, broker.url(0), results.url(0)) as worker:
        worker.ready()
        send(app, gate, "late", "early")
        wait_until(lambda: begun(app, "late"), "one is claimed")
        worker.wait_line(">> .* started early")
        fill(results)
        gate.touch()
        worker.wait_line("has ended .*, and that cannot be stored: it is stored later", 2)
        wait_until(lambda: not list(Operations(app).claims()), "it is acknowledged")
        assert (state(app, "late"), state(app, "early")) == ("PENDING", "PENDING")
        fill(results, full=False)
        all_end_well(app, "late", "early")
        worker.term()
        assert worker.wait() == 0
        assert (worker.count(KEPT), worker.count(">> .* started")) == (0, 2)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_rabbitmq_that_is_gone(
    pool: str, rabbit_vhost: RabbitVhost, redis_db: RedisDB, tmp_path: Path
) -> None:
    """What follows cannot be sent, and its message has gone back: plain Celery runs it again."""
    gate = tmp_path / "go"
    app = make_app(rabbit_vhost.url, redis_db.backend_url)
    with door(rabbit_vhost.server.port) as way:
        url = rabbit_vhost.server.url(rabbit_vhost.name, way.port)
        env = {"CONF_graceful_store": repr(redis_db.url), **NO_RETRIES}
        with start(pool, url, redis_db.backend_url, **env) as worker:
            worker.ready()
            late = app.signature("late", [str(gate)])
            result = chain(late, app.signature("follows")).apply_async()
            more = ["trying"] if pool == "threads" else []
            send(app, gate, *more)
            worker.wait_line(">> .* started", 1 + len(more))
            way.shut()
            worker.wait_line("Connection to broker lost")
            gate.touch()
            if pool == "threads":
                worker.wait_line(KEPT, 2)
            else:  # the main process hears of its children when it is connected again
                worker.wait_line("Task late.* raised unexpected|raised outside body")
            way.open()
            worker.wait_line(">> .* follows")
            worker.wait_line(KEPT, 1 + len(more))
            ids = (result.parent.id, result.id, *more)
            ends = dict.fromkeys(ids, "SUCCESS")
            wait_until(lambda: {each: state(app, each) for each in ids} == ends, f"{ends}", 0.1)
            worker.term()
            assert worker.wait() == 0
        assert worker.count(">> .* started") == 2 * (1 + len(more))
    assert rabbit_vhost.server.queue_length("celery", rabbit_vhost.name) == 0
