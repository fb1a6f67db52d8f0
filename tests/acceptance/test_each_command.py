"""Each command, whatever the workers do: one that drains, one that is frozen, and dies; and while
Redis is away."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import click
import pytest
from celery import Celery
from click.testing import CliRunner

from celery_graceful import Batch
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.claims.claimant import WORKERS, lease_key
from celery_graceful.claims.lease import about_key, broker_digest
from celery_graceful.cli.group import graceful
from celery_graceful.operations import Operations, asking
from celery_graceful.poison.quarantine import Kept, put
from celery_graceful.store.app_stores import find_workers_store
from tests.conftest import RedisDB
from tests.servers import RedisServer
from tests.support.operators import APP, make_app, send, start
from tests.support.patience import has_patience
from tests.support.schema import conforms, schemas
from tests.support.workers import TIMEOUT, end_leases, wait_until

SCHEMAS = schemas("operations.md")

#: Each with its document, and what it exits with: 0 or 1 is told by what is there, and by
#: whether a worker answers.
READING = {
    "status": "Status",
    "claims": "Claim",
    "claims one@test": "Claim",
    "checkpoints list": "Checkpoint",
    "checkpoints show counts": "Checkpoint",
    "history": "History",
    "history counts": "History",
    "why counts": "Why",
    "why waits": "Why",
    "quarantine list": "QuarantinedTask",
    "quarantine show kept": "QuarantinedMessage",
    "batches list": "Batch",
    "batches show BATCH": "Batch",
    "rescue --dry-run": "Rescued",
    "doctor": "",
}

#: What changes nothing here that the next one needs.
DOING = {
    "quiet one@test --wait 0.2": "Answer",
    "resume one@test --wait 0.2": "Answer",
    "stop one@test --yes --wait 0.2": "Answer",
    "deploy mark x": "Moment",
    "checkpoints clear nothing --yes": "Done",
    "quarantine retry nothing": "Done",
    "quarantine delete nothing --yes": "Done",
    "batches resend BATCH": "Resent",
    "batches callback BATCH on_complete": "Done",
    "batches complete nothing --yes": "Done",
    "batches drop nothing --yes": "Done",
}

#: Seconds until a command has said that a server is away: five times what the slowest takes where
#: nothing else runs. On a busy machine it is no fault of a command's.
AWAY = 45.0


@pytest.fixture(autouse=True)
def patience() -> None:
    """Not where Redis is away."""


def leaves(group: click.Group, path: str = "") -> Iterator[str]:
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        each = group.get_command(ctx, name)
        if isinstance(each, click.Group):
            yield from leaves(each, f"{path}{name} ")
        else:
            yield path + name


class Shell:
    """Runs commands, and says what each has exited with."""

    def __init__(self, app: Celery, batch: str = "nothing") -> None:
        self.app, self.batch = app, batch

    def run(self, line: str, name: str) -> int:
        args = [*line.replace("BATCH", self.batch).split(), "--json"]
        ended = CliRunner().invoke(graceful, args, obj=SimpleNamespace(app=self.app))
        assert ended.exception is None or isinstance(ended.exception, SystemExit), line
        assert "Traceback" not in ended.output, line
        if ended.exit_code in (0, 1) and not ended.output.startswith("Error: there is no "):
            found = json.loads(ended.stdout)
            for each in found if isinstance(found, list) else [found]:
                if name and each is not None:
                    conforms(each, SCHEMAS[name], SCHEMAS, line)
        else:
            assert ended.output.strip(), line
        return ended.exit_code

    def all(self, lines: dict[str, str]) -> dict[str, int]:
        return {line: self.run(line, name) for line, name in lines.items()}


def test_none_is_left_out() -> None:
    lines = [*READING, *DOING, "chaos kill-worker", "probe"]
    assert [each for each in leaves(graceful) if not any(x.startswith(each) for x in lines)] == []


def test_whatever_the_workers_do(
    start_server: Callable[..., RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    has_patience(monkeypatch)
    monkeypatch.setattr(asking, "BROKER_TIMEOUT", TIMEOUT)
    server = start_server(RedisServer)
    app = make_app(server.url(0), server.url(1))
    operations = Operations(app)
    waiting = app.signature(f"{APP}.short", (9,)).set(queue="nobody")
    batch = Batch(app=app).apply_async([waiting])
    put(find_workers_store(app), Kept("kept", "shop.dies", "it died", 3, 0.0, "w", {}))
    shell = Shell(app, batch.id)
    # While it lives, and while it is frozen and looked at; then it is ended by hand.
    with start(app, "one@test", CONF_graceful_lease_ttl="10.0") as one:
        one.ready()
        send(app, "stubborn", "counts")
        send(app, "short", "waits", 1)
        one.wait_line(">> .* stubborn")
        wait_until(lambda: any(c.begun for c in operations.claims()), "it runs")

        # It drains, and its task holds it up.
        assert shell.run("stop one@test --yes --wait 20", "Answer") == 0
        wait_until(lambda: any(w.seconds_left for w in operations.workers()), "it drains")
        wait_until(lambda: len([*operations.claims()]) == 1, "what waited has gone back")
        found = shell.all(READING)
        assert found["claims one@test"] == found["history"] == 0
        assert found["why counts"] == 0, "it runs"
        assert found["why waits"] == found["status"] == 1, "nobody fetches it"
        assert {*found.values()} <= {0, 1}
        found = shell.all(DOING)
        assert found["resume one@test --wait 0.2"] == 1, "it was asked to stop"
        assert {*found.values()} <= {0, 1}

        # It is frozen: what is read needs no answer, and the others end in time.
        one.signal(signal.SIGSTOP, group=True)
        wait_until(lambda: all(w.heard > 1.5 for w in operations.workers()), "it is not heard")
        began = time.monotonic()
        found = shell.all({"quiet one@test --wait 0.2": "Answer", "why counts": "Why"})
        assert time.monotonic() - began < 2 * AWAY
        assert found["quiet one@test --wait 0.2"] == 1
        assert {*shell.all(READING).values()} <= {0, 1}

        # It is dead to others.
        with server.client() as client:
            end_leases(client, one)
        assert operations.dead_workers()
        found = shell.all(READING)
        assert found["status"] == found["why counts"] == found["claims"] == 1
        assert found["rescue --dry-run"] == found["quarantine list"] == 1
        assert {*found.values()} <= {0, 1}
        found = shell.all(DOING)
        assert found["stop one@test --yes --wait 0.2"] == 1, "there is none of that name"
        assert shell.run("chaos kill-worker one@test --yes", "Kill") == 1
        one.signal(signal.SIGKILL, group=True)

    def rescued() -> bool:
        assert shell.run("rescue", "Rescued") in (0, 1), "nobody may be taken for dead yet"
        return shell.run("claims one@test", "Claim") == 1

    wait_until(rescued, "nobody knows it any more", 0.1)
    assert shell.run("batches complete BATCH --yes", "Done") == 0
    assert shell.run("batches drop BATCH --yes", "Done") == 0
    assert shell.run("quarantine delete kept --yes", "Done") == 0


@pytest.mark.parametrize("how", ["frozen", "gone"])
def test_while_redis_is_away(start_server: Callable[..., RedisServer], how: str) -> None:
    server = start_server(RedisServer)
    shell = Shell(make_app(server.url(0), server.url(1)))
    if how == "frozen":
        server.pause()
    else:
        server.kill()
    for line in (*READING, *DOING, "rescue", "chaos kill-worker one@test --yes"):
        began = time.monotonic()
        assert shell.run(line, "") == 3, line
        assert time.monotonic() - began < AWAY, line
    if how == "frozen":
        server.resume()


#: What cannot be done, or said, without the broker; of the others the store knows.
NEEDS_BROKER = {
    "quiet one@test --wait 0.2",
    "resume one@test --wait 0.2",
    "stop one@test --yes --wait 0.2",
    "doctor",
    "quarantine retry kept other",
    "batches resend BATCH",
    "batches resend BATCH --member MEMBER",
    "batches callback BATCH on_complete",
    "chaos kill-worker one@test --yes",
}


def test_while_rabbitmq_says_nothing(redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections, as one that is frozen: each command waits for it once."""
    at_redis = make_app(redis_db.url, redis_db.backend_url)
    waiting = at_redis.signature(f"{APP}.short", (9,)).set(queue="nobody")
    batch = Batch(app=at_redis, on_complete=at_redis.signature(f"{APP}.errback"))
    batch.apply_async([waiting])
    (member,) = BatchLedger(find_workers_store(at_redis)).members_pending(batch.id)
    names = ("body", "content_type", "content_encoding", "exchange", "routing_key")
    message = {**dict.fromkeys(names, ""), "headers": {}, "properties": {}}
    for task_id in ("kept", "other"):
        put(find_workers_store(at_redis), Kept(task_id, "x", "it died", 3, 0.0, "w", message))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        has_patience(monkeypatch, away=port)
        # Results are there as well.
        app = make_app(f"amqp://127.0.0.1:{port}//", f"redis://127.0.0.1:{port}/0")
        app.conf.graceful_store = redis_db.url
        has_lease(app, redis_db, "one@test:1")
        shell = Shell(app, batch.id)
        for line in sorted({*READING, *DOING, *NEEDS_BROKER, "rescue"}):
            began = time.monotonic()
            status = shell.run(line.replace("MEMBER", member), "")
            assert time.monotonic() - began < AWAY, line
            assert (status == 3) == (line in NEEDS_BROKER), (line, status)
            assert status in (0, 1, 3), line


def has_lease(app: Celery, redis_db: RedisDB, worker: str) -> None:
    """As a worker has it that counts on another broker."""
    redis_db.client.sadd(WORKERS, worker)
    redis_db.client.set(lease_key(worker), json.dumps({"pid": 1, "since": 1.0}), ex=600)
    redis_db.client.set(about_key(worker), json.dumps({"broker": broker_digest(app)}), ex=600)
