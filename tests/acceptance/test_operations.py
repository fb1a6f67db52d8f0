"""What operators see and do, with real workers: each command on one fleet."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery

from celery_graceful import Batch
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.operations import Operations, findings, operations, why
from celery_graceful.operations.asking import ask
from celery_graceful.operations.findings import Unknown
from celery_graceful.poison.quarantine import Kept, put
from celery_graceful.store.app_stores import find_store, find_workers_store
from tests.conftest import RedisDB
from tests.servers import RabbitServer, RedisServer
from tests.support.broker import graceful_command
from tests.support.operators import APP, command, command_or, document, make_app, send, start
from tests.support.patience import has_patience
from tests.support.workers import TIMEOUT, Worker, end_leases, wait_until, wait_until_heard

#: Of who is killed or frozen it is ended by hand: no machine is so busy that it runs out.
LEASE = {"CONF_graceful_lease_ttl": "10.0", "CONF_graceful_rescue_interval": "0.5"}


@pytest.fixture(autouse=True)
def patience() -> None:
    """Not where Redis is away."""


@contextmanager
def nobody_is_too_slow() -> Iterator[None]:
    """To be heard of, and to answer who asks: the machine may be slow."""

    def patient(
        app: Celery, command: str, wait: float, workers: Any = None, **arguments: Any
    ) -> dict[str, Any]:
        return ask(app, command, wait if workers is None else TIMEOUT, workers, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        has_patience(patch)
        patch.setattr(findings, "SILENT", 2 * TIMEOUT)
        patch.setattr(findings, "LAG", TIMEOUT)
        patch.setattr(why, "ask", patient)
        yield


def test_a_fleet(start_server: Callable[..., Any]) -> None:
    server: RedisServer = start_server(RedisServer)
    app = make_app(server.url(0), server.url(1))
    operations = Operations(app)
    assert "no worker is running" in command(app, "status", status=1)

    # Of who lives, and of who is frozen, while that is looked at; then it is ended by hand.
    with start(app, "one@test", CONF_graceful_lease_ttl="20.0") as one:
        one.ready()
        send(app, "count", "counts", 10**6)
        send(app, "short", "waits", 1)
        send(app, "short", "later", 2, countdown=3000)
        with nobody_is_too_slow():
            _running(app, operations)
            _why(app)
        with pytest.MonkeyPatch.context() as patch:
            has_patience(patch)
            _frozen(app, operations, one, server)
    with pytest.MonkeyPatch.context() as patch:
        has_patience(patch)
        _dead(app, operations)
    _redis_away(app, server)


def test_quiet_and_again(start_server: Callable[..., Any]) -> None:
    server: RedisServer = start_server(RedisServer)
    app = make_app(server.url(0), server.url(1))
    operations = Operations(app, wait=20)
    with (
        nobody_is_too_slow(),
        start(app, "one@test", **LEASE) as one,
        start(app, "two@test", **LEASE) as two,
    ):
        for worker in (one, two):
            worker.ready()
        wait_until(lambda: len(operations.workers()) == 2, "both have registered")
        wait_until_heard(app)

        said = document(app, "Answer", "quiet", "one@test", "--wait", "20")
        assert said == [{"worker": "one@test", "ok": True, "said": "quiet"}]
        one.wait_line("Quiet, asked for by remote control")
        wait_until(lambda: operations.status().findings, "its heartbeat says so")
        (finding,) = operations.status().findings
        assert (finding.what, finding.mend) == (
            "one@test is quiet: it fetches nothing",
            "resume one@test",
        )
        assert "no worker nobody" in command(app, "stop", "nobody", "--yes", status=1)
        assert "nothing was done" in command(app, "quiet", status=2)

        assert command(app, "stop", "two@test", "--yes", "--wait", "20").startswith(
            "two@test  stop"
        )
        assert two.wait() == 0
        send(app, "short", "first", 1)
        said = command(app, "resume", "one@test", "--wait", "20")
        assert said == "one@test  running\n"
        one.wait_line("it fetches")
        one.wait_line(">> .* short 1")

        # Again, and a task that holds it up while it drains.
        assert command(app, "quiet", "--yes", "--wait", "20") == "one@test  quiet\n"
        one.wait_line("Quiet, asked for by remote control", 2)
        assert "running" in command(app, "resume", "--wait", "20")
        send(app, "stubborn", "holds")
        one.wait_line(">> .* stubborn")
        command(app, "stop", "one@test", "--yes", "--wait", "20")
        wait_until(lambda: any(w.seconds_left for w in operations.workers()), "it drains")
        (worker,) = document(app, "Status", "status")["workers"]
        assert worker["phase"] == "quiet"
        assert 0 < worker["seconds_left"] < 3000
        assert "it was asked to stop" in command(app, "resume", "--wait", "20", status=1)


@pytest.fixture
def leases_end(monkeypatch: pytest.MonkeyPatch, redis_db: RedisDB) -> None:
    """That of who is killed on purpose."""
    kill = operations.kill

    def kill_and_end(worker: Any) -> None:
        kill(worker)
        redis_db.client.delete(f"graceful:lease:{worker.id}")

    monkeypatch.setattr(operations, "kill", kill_and_end)


@pytest.mark.usefixtures("leases_end")
def test_killed_on_purpose(redis_db: RedisDB) -> None:
    app = make_app(redis_db.url, redis_db.backend_url)
    operations = Operations(app)
    with nobody_is_too_slow(), start(app, "one@test", **LEASE) as one:
        one.ready()
        send(app, "count", "counts", 10**6)
        send(app, "short", "waits", 1)
        one.wait_line(r"\[waits\] received")
        wait_until(lambda: [c.begun for c in operations.claims()].count(True), "one runs")
        wait_until(lambda: operations.checkpoint("counts", f"{APP}.count"), "it has saved")
        said = command(app, "chaos", "kill-worker", "one@test", status=2)
        assert said.startswith("No other worker is running: what it holds waits")
        assert "Kill one@test, process " in said
        with start(app, "two@test", **LEASE) as two:
            two.ready()
            args = ("chaos", "kill-worker", "one@test", "--yes")
            found = document(app, "Kill", *args)
            assert one.wait() == -signal.SIGKILL
            tasks = {task["id"]: task for task in found["tasks"]}
            assert (tasks["counts"]["state"], tasks["counts"]["worker"]) == ("running", "two@test")
            assert tasks["counts"]["said"].endswith("of loop")
            assert (tasks["waits"]["state"], tasks["waits"]["begun"]) == ("back", False)
            assert "no worker one@test" in command(app, *args, status=1)
            # Nobody is left to give back what two@test holds.
            said = command(
                app, "chaos", "kill-worker", "two@test", "--yes", "--timeout", "0", status=1
            )
            assert "0 of 1 tasks ran again" in said
            assert said.endswith("\n  -> celery -A resuming graceful rescue\n")


@pytest.mark.usefixtures("leases_end")
@pytest.mark.parametrize("state", ["draining", "frozen"])
def test_killed_on_purpose_when_it_is_stuck(redis_db: RedisDB, state: str) -> None:
    """What holds a deploy up is what somebody kills."""
    app = make_app(redis_db.url, redis_db.backend_url)
    operations = Operations(app)
    with nobody_is_too_slow(), start(app, "one@test", **LEASE) as one:
        one.ready()
        wait_until_heard(app)
        send(app, "stubborn", "holds")
        one.wait_line(">> .* stubborn")
        with start(app, "two@test", **LEASE) as two:
            two.ready()
            if state == "draining":
                command(app, "stop", "one@test", "--yes", "--wait", "20")
                wait_until(lambda: any(w.seconds_left for w in operations.workers()), "it drains")
            else:
                one.signal(signal.SIGSTOP, group=True)
            found = document(app, "Kill", "chaos", "kill-worker", "one@test", "--yes")
            assert one.wait() == -signal.SIGKILL
            (task,) = found["tasks"]
            assert (task["id"], task["state"], task["worker"]) == ("holds", "running", "two@test")
            two.wait_line(">> .* stubborn")
            wait_until(lambda: not operations.dead_workers(), "nothing is left of it")
            (left,) = operations.workers()
            assert left.name == "two@test"


@pytest.mark.usefixtures("leases_end")
def test_killed_on_purpose_after_its_lease_was_lost(redis_db: RedisDB) -> None:
    """It lives, and still runs what another worker runs anew."""
    app = make_app(redis_db.url, redis_db.backend_url)
    operations = Operations(app)
    kill = ("chaos", "kill-worker", "one@test", "--yes")
    with nobody_is_too_slow(), start(app, "one@test", **LEASE) as one:
        one.ready()
        send(app, "stubborn", "holds")
        one.wait_line(">> .* stubborn")
        # What is not noted to have begun has not died of it, either.
        wait_until(lambda: [c.begun for c in operations.claims()] == [True], "it is noted")
        with start(app, "two@test", **LEASE) as two:
            two.ready()
            one.signal(signal.SIGSTOP, group=True)
            end_leases(redis_db.client, one)
            two.wait_line(">> .* stubborn")
            assert "no worker one@test" in command(app, *kill, status=1), "it is dead to others"
            one.signal(signal.SIGCONT, group=True)
            wait_until(
                lambda: [w for w in operations.workers() if w.name == "one@test" and w.running],
                "it has a lease again",
            )
            (task,) = document(app, "Kill", *kill)["tasks"]
            assert one.wait() == -signal.SIGKILL
            assert (task["id"], task["state"], task["worker"]) == ("holds", "running", "two@test")
            assert "the process that ran it died once" in command(app, "why", "holds")


def test_room_after_a_quiet(redis_db: RedisDB) -> None:
    """A pool of greenlets is given more room while it is quiet, and no more after that."""
    app = make_app(redis_db.url, redis_db.backend_url)
    with nobody_is_too_slow(), start(app, "one@test", pool="gevent") as one:
        one.ready()
        wait_until_heard(app)
        command(app, "quiet", "one@test", "--wait", "20")
        one.wait_line("Quiet, asked for by remote control")
        command(app, "resume", "one@test", "--wait", "20")
        known = Unknown([], ["one@test"])  # had it no lease
        wait_until(lambda: Operations(app)._unknown_workers() == known, "it says what it is")
        for number in range(3):
            send(app, "count", f"counts-{number}", 10**6)
        one.wait_line(r"\[counts-1\] received")
        (said,) = ask(app, "graceful_status", 20, ["one@test"]).values()
        assert [task["running"] for task in said["tasks"]] == [True, False]


def _running(app: Celery, operations: Operations) -> None:
    wait_until(lambda: [c.begun for c in operations.claims()].count(True), "one runs")
    wait_until(lambda: len(list(operations.claims())) == 3, "the others are claimed")

    def saved() -> bool:
        tasks = [task for worker in operations.workers() for task in worker.running]
        return bool(tasks and tasks[0].checkpoint and tasks[0].checkpoint.where)

    wait_until(saved, "the heartbeat names it, and it has saved where it stands")
    (worker,) = document(app, "Status", "status")["workers"]
    assert (worker["name"], worker["phase"], worker["claims"]) == ("one@test", "running", 3)
    assert (worker["concurrency"], worker["queues"]) == (1, ["celery"])
    (task,) = worker["running"]
    assert (task["id"], task["task"]) == ("counts", f"{APP}.count")
    assert task["checkpoint"]["loops"][0]["cursor"] > 0
    said = command(app, "status")
    assert f"  {APP}.count  counts  " in said
    assert " of loop\n" in said

    found = {claim["id"]: claim for claim in document(app, "Claim", "claims", "one@test")}
    assert found["counts"]["begun"]
    assert not found["waits"]["begun"]
    assert found["later"]["eta"]
    assert found["waits"]["queue"] == "celery"
    assert "no worker nobody@test" in command(app, "claims", "nobody@test", status=1)
    assert command(app, "claims").startswith(f"{found['counts']['worker']}  3 claims\n")

    assert document(app, "Checkpoint", "checkpoints", "show", "counts")["task"] == f"{APP}.count"
    assert "loop loop: has done" in command(app, "checkpoints", "show", "counts")
    (listed,) = document(app, "Checkpoint", "checkpoints", "list")
    assert listed["id"] == "counts"
    beside = make_app(f"redis://127.0.0.1:1/0;{app.conf.broker_url}", app.conf.result_backend)
    (away,) = document(beside, "Status", "status", status=1)["findings"]
    assert away["what"] == "127.0.0.1:1 does not answer"
    assert document(beside, "Status", "status", status=1)["workers"][0]["claims"] == 3
    assert command(beside, "why", "waits").startswith("waits  claimed")
    beside.conf.update(graceful_lease_ttl=60.0, graceful_heartbeat_interval=1.0)
    assert Operations(beside).workers()[0].heard < 30, "it is the worker's own lease that counts"
    _batches(app, operations)
    assert "nothing is saved of x" in command(app, "checkpoints", "show", "x", status=1)


def _batches(app: Celery, operations: Operations) -> None:
    """Two of them wait for a member each; one of these was found nowhere."""
    waiting = app.signature(f"{APP}.short", (9,)).set(queue="nobody")
    lost, well = (Batch(app=app).apply_async([waiting.clone()]) for _ in range(2))
    store = find_store(app)
    assert store is not None
    BatchLedger(store).note_missing(lost.id, 1)
    assert operations.batches_missing() == [lost.id]
    said = command(app, "status", status=1)
    assert "1 batch with missing members\n  -> " in said
    for batch in (lost, well):
        assert "dropped" in command(app, "batches", "drop", batch.id, "--yes")


def _why(app: Celery) -> None:
    """While ``counts`` runs, ``waits`` and ``later`` are claimed."""

    def why(task_id: str, status: int = 0) -> dict[str, Any]:
        found = document(app, "Why", "why", task_id, status=status)
        return {**found, "said": " / ".join(found["sentences"])}

    runs = why("counts")
    assert (runs["state"], runs["task"]) == ("running", f"{APP}.count")
    assert re.match(r"it runs on one@test for \d+ s / it has saved that it is at \d+", runs["said"])
    assert why("waits")["said"] == "one@test holds it, and waits for room in the pool"
    assert why("later")["said"].startswith("one@test holds it, and waits for its time, 20")
    said = "nobody has heard of it: no worker holds it, it is in no queue, it has no result"
    assert why("never", status=1)["sentences"] == [said]

    for number in range(3):
        send(app, "short", f"queued-{number}", number, queue="nowhere")
    third = why("queued-2", status=1)
    assert (third["state"], third["queue"], third["place"]) == ("queued", "nowhere", 3)
    assert third["task"] == f"{APP}.short"
    nobody = "nobody consumes it: start a worker with --queues nowhere"
    assert third["said"].endswith(f"at place 3 of 3; {nobody}")
    said = f"it waits in the queue nowhere, at place 1 of 3; {nobody}"
    assert why("queued-0", status=1)["said"] == said

    app.backend.store_result("done", 1, "SUCCESS")
    assert why("done")["said"].startswith("it has ended: SUCCESS, 20")
    put(find_workers_store(app), Kept("killed", "shop.dies", "it died", 3, 0.0, "w", {}))
    assert "in quarantine since 1970-01-01 00:00:00Z: it died" in why("killed", status=1)["said"]
    assert command(app, "quarantine", "delete", "killed", "--yes") == "killed deleted\n"


def _frozen(app: Celery, operations: Operations, one: Worker, server: RedisServer) -> None:
    one.signal(signal.SIGSTOP, group=True)
    wait_until(lambda: operations.status().findings, "it is not heard")
    found = document(app, "Status", "status", status=1)
    assert f"look at process {one.pid}" in found["findings"][0]["mend"]
    assert found["workers"][0]["running"][0]["id"] == "counts"
    with server.client() as client:
        end_leases(client, one)
    assert operations.dead_workers()
    said = command(app, "status", status=1)
    assert "one@test is dead and holds 3 messages\n  -> celery -A resuming graceful rescue" in said


def _dead(app: Celery, operations: Operations) -> None:
    said = command(app, "why", "waits", status=1)
    assert "is dead: others give it back to celery\n  -> celery -A resuming graceful rescue" in said
    claims = document(app, "Claim", "claims", status=1)
    assert [claim["worker_lives"] for claim in claims] == [False] * 3
    assert "dead: they wait" in command(app, "claims", status=1)
    assert "is dead and holds 3 claims" in command(app, "rescue", "--dry-run", status=1)
    # Of a server that has just started, an expired lease says nothing.
    wait_until(lambda: "3 went back" in command_or(app, "rescue"), "it is rescued", pause=0.1)
    assert not operations.dead_workers()
    assert "nothing was done" in command(app, "checkpoints", "clear", "counts", status=2)
    assert command(app, "checkpoints", "clear", "counts", "--yes") == "counts cleared\n"
    assert "nothing is saved" in command(app, "checkpoints", "list")


def _redis_away(app: Celery, server: RedisServer) -> None:
    """The first one is the real command line, which takes a second to start by itself."""
    server.pause()
    env = {"BROKER_URL": app.conf.broker_url, "RESULT_URL": app.conf.result_backend}
    assert "Error: the broker" in graceful_command(APP, "status", env=env, status=3)
    for args in (["claims"], ["checkpoints", "list"], ["history"], ["deploy", "mark", "x"]):
        assert "Error: the broker" in command(app, *args, status=3)
    server.resume()


def test_without_a_store() -> None:
    app = make_app("amqp://127.0.0.1:1", "rpc://")
    assert "graceful_store is not set" in command(app, "status", status=3)
    assert "graceful_store is not set" in command(app, "checkpoints", "list", status=3)


@contextmanager
def counting_on_rabbitmq(url: str, redis_db: RedisDB) -> Iterator[tuple[Celery, Worker]]:
    """An app whose store is Redis, and its worker, which runs a task that takes long."""
    app = make_app(url, "rpc://")
    app.conf.graceful_store = redis_db.url
    store = {"CONF_graceful_store": repr(redis_db.url), "RESULT_URL": "rpc://", **LEASE}
    with start(app, "one@test", **store) as worker:
        worker.ready()
        send(app, "count", "counts", 10**6)
        workers = Operations(app).workers
        wait_until(lambda: [w for w in workers() if w.running], "it runs")
        yield app, worker


def test_rabbitmq_with_a_store(rabbit_vhost: Any, redis_db: RedisDB) -> None:
    with nobody_is_too_slow(), counting_on_rabbitmq(rabbit_vhost.url, redis_db) as (app, worker):
        (found,) = document(app, "Status", "status")["workers"]
        assert (found["claims"], found["running"][0]["id"]) == (None, "counts")
        assert "it alone knows who holds what; what runs:" in command(app, "claims")
        assert "broker" not in command(app, "status")
        for line in (("rescue",), ("rescue", "--dry-run")):
            assert document(app, "Rescued", *line) == []
            assert "the broker gives back by itself what a dead" in command(app, *line)
        assert "it runs on one@test" in command(app, "why", "counts")
        for number in range(6):
            send(app, "short", f"waits-{number}", number)
        wait_until(lambda: "claimed" in command_or(app, "why", "waits-0"), "it holds some")
        assert "room in the pool" in command(app, "why", "waits-0")
        said = command(app, "why", "waits-5", status=1)
        assert "no worker holds it, results are kept for nobody, or for who has sent the" in said
        assert "it may be in celery" in said
        assert "1 consume it" in said

        wait_until_heard(app)
        assert command(app, "quiet", "one@test", "--wait", "20") == "one@test  quiet\n"
        worker.wait_line("Quiet, asked for")
        wait_until(lambda: rabbit_vhost.queue_length("celery") == 6, "all else is back")
        assert command(app, "resume", "one@test", "--wait", "20") == "one@test  running\n"
        wait_until(lambda: rabbit_vhost.queue_length("celery") < 6, "it fetches")


@pytest.mark.rabbitmq
@pytest.mark.slow
def test_while_rabbitmq_is_away(
    start_server: Callable[..., Any], redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen, and gone: what is known is shown, and the server is named, without its password."""
    has_patience(monkeypatch, away=1)  # with Redis
    server = start_server(RabbitServer)
    with counting_on_rabbitmq(server.url(), redis_db) as (app, _):
        for how in (server.pause, server.kill):
            how()
            for line in ("status", "doctor", "why unheard-of"):
                began = time.monotonic()
                said = command_or(app, *line.split())
                assert time.monotonic() - began < 25, line  # two seconds for the broker, and one
                assert f"guest:**@127.0.0.1:{server.port}" in said, line
                assert "guest:guest" not in said
                assert "Traceback" not in said
            assert "one@test" in command_or(app, "status")
            assert "it alone knows who holds what" in command(app, "claims")
            assert "it runs on one@test" in command_or(app, "why", "counts")
            if how == server.pause:
                server.resume()
