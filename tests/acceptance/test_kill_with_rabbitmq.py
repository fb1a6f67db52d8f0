"""``chaos kill-worker`` where RabbitMQ is the broker, and the store is a Redis."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery

from celery_graceful.operations import Operations, asking, operations
from celery_graceful.operations.records import Worker as Known
from tests.conftest import RabbitVhost, RedisDB
from tests.servers import RabbitServer, RedisServer
from tests.support import patience as patience_of
from tests.support.operators import command, document, make_app, send, start
from tests.support.patience import has_patience
from tests.support.workers import TIMEOUT, Worker, wait_until, wait_until_heard

pytestmark = pytest.mark.rabbitmq

#: Seconds until the command has said that a server is away: many times what it takes where nothing
#: else runs.
AWAY = 50.0

#: Seconds that one has to answer that is there, or is not yet away.
SLOW = 12.0

#: Nobody runs out of it: what is killed is heard of no more.
LEASE = {"CONF_graceful_lease_ttl": "10.0", "CONF_graceful_rescue_interval": "0.5"}

KILL = ("chaos", "kill-worker", "one@test", "--yes")

Kill = Callable[[Known], None]


@pytest.fixture(autouse=True)
def patience() -> None:
    """Not where Redis is away."""


@pytest.fixture(autouse=True)
def after_the_kill(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What happens as soon as the worker is dead."""
    kill: Kill = operations.kill
    then: list[Callable[[], object]] = []

    def kill_and_go_on(worker: Known) -> None:
        kill(worker)
        for each in then:
            each()

    monkeypatch.setattr(operations, "kill", kill_and_go_on)
    return then


@contextmanager
def holding(broker: str, store: str) -> Iterator[tuple[Celery, Worker, dict[str, str]]]:
    """An app, and a worker whose task does not stop."""
    app = make_app(broker, "rpc://")
    app.conf.graceful_store = store
    env = {"CONF_graceful_store": repr(store), "RESULT_URL": "rpc://", **LEASE}
    with start(app, "one@test", **env) as worker:
        worker.ready()
        send(app, "stubborn", "holds")
        worker.wait_line(">> .* stubborn")
        known = Operations(app).workers
        wait_until(lambda: [w for w in known() if w.running], "its heartbeat names it")
        yield app, worker, env


@pytest.mark.parametrize("state", ["running", "draining", "frozen"])
def test_it_runs_again(
    state: str, rabbit_vhost: RabbitVhost, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_patience(monkeypatch)
    monkeypatch.setattr(asking, "BROKER_TIMEOUT", TIMEOUT)
    with holding(rabbit_vhost.url, redis_db.url) as (app, one, env):
        if state == "draining":
            wait_until_heard(app)
            command(app, "stop", "one@test", "--yes", "--wait", "20")
            wait_until(lambda: any(w.seconds_left for w in Operations(app).workers()), "it drains")
        with start(app, "two@test", **env) as two:
            two.ready()
            if state == "frozen":  # now: the lease of one that is frozen runs out
                one.signal(signal.SIGSTOP, group=True)
            (task,) = document(app, "Kill", *KILL)["tasks"]
            assert one.wait() == -signal.SIGKILL
            assert (task["id"], task["state"], task["worker"]) == ("holds", "running", "two@test")
            two.wait_line(">> .* stubborn")


@pytest.mark.slow
def test_while_rabbitmq_is_away(
    start_server: Callable[..., Any], redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen, and gone: nobody would get what the worker holds, so it is left alone."""
    has_patience(monkeypatch, away=1)  # with Redis
    server = start_server(RabbitServer)
    with holding(server.url(), redis_db.url) as (app, one, _):
        for how in (server.pause, server.kill):
            how()
            began = time.monotonic()
            said = command(app, *KILL, status=3)
            assert time.monotonic() - began < AWAY
            assert said.startswith("Error: ")
            assert f"guest:**@127.0.0.1:{server.port}" in said
            assert "Traceback" not in said
            assert one.process.poll() is None, "it lives"
            if how == server.pause:
                server.resume()


@pytest.mark.slow
def test_rabbitmq_hangs_after_the_kill(
    start_server: Callable[..., Any],
    redis_db: RedisDB,
    after_the_kill: list[Callable[[], object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is waited for as long as was said, and what is not known is said."""
    has_patience(monkeypatch, away=1)  # with Redis
    monkeypatch.setattr(asking, "BROKER_TIMEOUT", SLOW)
    server = start_server(RabbitServer)
    after_the_kill.append(server.pause)
    with holding(server.url(), redis_db.url) as (app, one, _):
        began = time.monotonic()
        said = command(app, *KILL, "--timeout", "1", status=1)
        assert time.monotonic() - began < AWAY
        assert one.wait() == -signal.SIGKILL
        assert "one@test was killed at" in said
        assert "it may be in a queue: the broker does not answer" in " ".join(said.split())
        assert "0 of 1 tasks ran again" in said
        server.resume()


def test_redis_hangs_after_the_kill(
    rabbit_vhost: RabbitVhost,
    start_server: Callable[..., Any],
    after_the_kill: list[Callable[[], object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience_of, "TIMEOUT", SLOW)
    has_patience(monkeypatch)
    monkeypatch.setattr(asking, "BROKER_TIMEOUT", SLOW)
    server = start_server(RedisServer)
    after_the_kill.append(server.pause)
    with holding(rabbit_vhost.url, server.url()) as (app, one, _):
        began = time.monotonic()
        said = command(app, *KILL, status=3)
        assert time.monotonic() - began < AWAY
        assert one.wait(TIMEOUT) == -signal.SIGKILL
        assert "one@test was killed, and what becomes of its tasks cannot be seen: " in said
        server.resume()
