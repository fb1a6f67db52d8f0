"""What Celery cancels when its connection is lost, since it could not acknowledge it any more."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from amqp.exceptions import NotFound
from celery import Celery

from tests.conftest import RabbitVhost
from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker, wait_until

pytestmark = pytest.mark.slow


def start(broker: Broker, pool: str) -> Worker:
    env = {**broker.env, "GRACE": "60"}
    env["CONF_worker_cancel_long_running_tasks_on_connection_loss"] = "True"
    return Worker("tests.apps.claims", pool=pool, env=env)


def test_while_something_is_sent_at_the_start(broker: Broker, app: Celery) -> None:
    """As ``mingle`` does: Celery ends the worker by it."""
    with Worker("tests.apps.lost_at_start", pool="threads", env=broker.env) as worker:
        worker.wait_line("Connection to broker lost", 2)
        assert app.send_task("tests.apps.lifecycle.short").get(timeout=TIMEOUT)
        assert worker.count(">> .* sends") == 3
        worker.term()
        assert worker.wait() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_a_claim_outlives_it(pool: str, broker: Broker, app: Celery, tmp_path: Path) -> None:
    """Its task goes on, and the log does not say otherwise."""
    with start(broker, pool) as worker:
        worker.ready()
        result = app.send_task("hold", [str(tmp_path / "go")])
        worker.wait_line(">> .* started")
        active = app.control.inspect().active
        wait_until(lambda: result.id in str(active()), "the worker knows that it has begun")
        broker.cut()
        worker.wait_line(f"Task .*{result.id}.* goes on: its message is claimed")
        (tmp_path / "go").touch()
        # Asked for: `get()` of a client that connects again may miss what is said meanwhile.
        wait_until(lambda: app.AsyncResult(result.id).state == "SUCCESS", "it has ended")
        wait_until(lambda: not broker.held(), "it is acknowledged")
        worker.term()
        assert worker.wait() == 0
        assert worker.count(">> .* started") == 1
        assert worker.count("Terminating it") == 0
    assert broker.drain_queue(app) == []


def test_without_claims_it_is_run_again(rabbit_vhost: RabbitVhost, redis_db, tmp_path) -> None:
    broker = Broker("rabbitmq", rabbit_vhost.url, redis_db.backend_url, redis_db.client)
    with ExitStack() as stack:
        app = stack.enter_context(broker.app())
        worker = stack.enter_context(start(broker, "prefork")).ready()
        result = app.send_task("hold", [str(tmp_path / "go")])
        worker.wait_line(">> .* started")

        def lost() -> int:
            found = worker.count("Terminating it instead")
            if not found:  # else this might end the next run
                rabbit_vhost.cut()  # those that it knows of by now
            return found

        wait_until(lost, "the broker knows the worker's connection", 0.5)
        worker.wait_line(">> .* started", 2)
        (tmp_path / "go").touch()
        assert result.get(TIMEOUT) == result.id
        worker.term()
        assert worker.wait() == 0
        assert worker.count(">> .* ended") == 1
    assert broker.drain_queue(app) == []


def cut(broker: Broker, worker: Worker, request: pytest.FixtureRequest) -> None:
    """The worker's connection to its broker."""
    if broker.name == "redis":
        broker.cut()
        return
    vhost, seen = request.getfixturevalue("rabbit_vhost"), worker.count("to broker lost")

    def lost() -> bool:
        if worker.count("to broker lost") == seen:  # else this might be the next one
            vhost.cut()  # those that it knows of by now
        return worker.count("to broker lost") > seen

    wait_until(lost, "the broker knows the worker's connection", 0.5)


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
def test_a_job_that_a_child_was_given_in_part(
    broker: Broker, app: Celery, request: pytest.FixtureRequest
) -> None:
    """It is given the rest, and what follows."""
    with Worker("tests.apps.deaf", pool="prefork", concurrency=1, env=broker.env) as worker:
        worker.ready()
        assert app.send_task("take", ["small"]).get(TIMEOUT) == 5
        child = int(worker.wait_line(">> .* took .* 5$").split()[-2])
        inspect = app.control.inspect(timeout=TIMEOUT, limit=1)
        wait_until(lambda: [*inspect.active().values()] == [[]], "its end was heard")
        os.kill(child, signal.SIGSTOP)
        large = app.send_task("take", ["x" * 2_000_000])
        worker.wait_line(f"Task take.{large.id}. received")
        assert app.control.ping(timeout=TIMEOUT, limit=1), "the loop has gone round"
        cut(broker, worker, request)
        worker.wait_line("Connected to", 2)
        os.kill(child, signal.SIGCONT)
        # Asked for: `get()` of a client that connects again may miss what is said meanwhile.
        wait_until(lambda: app.AsyncResult(large.id).state == "SUCCESS", "it has run")
        after = app.send_task("take", ["after"])
        wait_until(lambda: app.AsyncResult(after.id).state == "SUCCESS", "what follows has run")
        wait_until(lambda: not broker.held(), "all of it is acknowledged")
        worker.term()
        assert worker.wait() == 0
        assert worker.count(">> .* took .* 2000000") == 1
    assert broker.drain_queue(app) == []


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
def test_what_no_child_was_given(
    broker: Broker, app: Celery, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """After the first cut Celery hands on more than there are children; RabbitMQ sends it again."""
    env = {**broker.env, "GRACE": "60"}
    with Worker("tests.apps.deaf", pool="prefork", concurrency=1, env=env) as worker:
        worker.ready()
        busy = app.send_task("late", [str(tmp_path / "go")])
        worker.wait_line(">> .* started late")
        waiting = [app.send_task("take", ["x" * size]) for size in (1, 2)]
        for number in (1, 2):
            for one in waiting:
                worker.wait_line(f"Task take.{one.id}. received", number)
                if broker.name == "redis":  # the claim outlives it
                    break
            cut(broker, worker, request)
            worker.wait_line("Connected to", number + 1)
            if broker.name == "redis":
                break
        (tmp_path / "go").touch()
        wait_until(lambda: app.AsyncResult(busy.id).state == "SUCCESS", "it has ended")
        for one in waiting:
            wait_until(lambda one=one: app.AsyncResult(one.id).state == "SUCCESS", "it has run")
        worker.term()
        assert worker.wait() == 0
        assert worker.count(">> .* started") == 1
        assert worker.count(">> .* took") == len(waiting)
        assert worker.count("Hard deadline") == 0
    assert broker.drain_queue(app) == []


@pytest.mark.parametrize("name", ["late", "early"])
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
def test_what_was_not_heard_to_have_begun(
    name: str, broker: Broker, app: Celery, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """It goes on, and its copy does not run beside it."""
    gates = [tmp_path / "first", tmp_path / "second"]
    env = {**broker.env, "GRACE": "60"}
    with Worker("tests.apps.deaf", pool="prefork", concurrency=2, env=env) as worker:
        worker.ready()
        before = [app.send_task("early", [str(tmp_path / "before")]) for _ in range(2)]
        worker.wait_line(">> .* started early", len(before))  # both children have come up
        (tmp_path / "before").touch()
        for one in before:
            one.get(TIMEOUT)
        inspect = app.control.inspect(timeout=TIMEOUT, limit=1)
        wait_until(lambda: [*inspect.active().values()] == [[]], "their ends were heard")
        app.send_task("deafen", [str(gates[0])], task_id="first")
        worker.wait_line(">> .* deaf first")
        result = app.send_task(name, [str(tmp_path / "go")])
        app.send_task("deafen", [str(gates[1])], task_id="second")
        gates[0].touch()
        worker.wait_line(f">> .* started {name}", 1 if name == "late" else 3)
        worker.wait_line(">> .* deaf second")
        if broker.name == "redis":
            broker.cut()
        else:  # which does not hear of it yet
            vhost = request.getfixturevalue("rabbit_vhost")
            wait_until(vhost.cut, "the broker knows the worker's connection", 0.5)
        gates[1].touch()
        worker.wait_line("Connected to", 2)
        if broker.name == "rabbitmq":
            worker.wait_line("was delivered again and still runs")
        (tmp_path / "go").touch()
        wait_until(lambda: app.AsyncResult(result.id).state == "SUCCESS", "it has ended")
        worker.term()
        assert worker.wait() == 0
        assert worker.count(">> .* started") == len(before) + 1
    assert {"second"}.issuperset(broker.drain_queue(app))


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_its_queue_is_deleted(pool: str, broker: Broker, app: Celery) -> None:
    """Nothing of what runs is at the broker any more: what a stop interrupts is sent again."""
    env = {**broker.env, "GRACE": "60"}
    with Worker("tests.apps.lifecycle", pool=pool, env=env) as worker:
        worker.ready()
        interrupted = app.send_task("tests.apps.lifecycle.sleeping")
        worker.wait_line(">> .* started sleeping")
        assert interrupted.id in delete_queue(app, worker)
        assert app.send_task("tests.apps.lifecycle.short").get(timeout=TIMEOUT)
        worker.term()
        assert worker.wait() == 0
        assert worker.count("Stopped: .* 1 interrupted")
    assert broker.drain_queue(app, at_least=1) == [interrupted.id]


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_deleted_queue_and_a_task_that_outlasts_the_stop(broker: Broker, app: Celery) -> None:
    env = {**broker.env, "GRACE": "60", "CONF_graceful_hard_deadline": "2"}
    with Worker("tests.apps.hard_times", pool="threads", env=env) as worker:
        worker.ready()
        given_up = app.send_task("tests.apps.hard_times.patient", [100])
        worker.wait_line(">> .* started patient")
        delete_queue(app, worker)
        worker.term()
        assert worker.wait() == 0
        assert worker.count("1 given up")
    assert broker.drain_queue(app, at_least=1) == [given_up.id]


def delete_queue(app: Celery, worker: Worker) -> str:
    """While something of it runs; until the worker has it anew, with what it says."""
    with app.connection_for_write() as connection:
        connection.default_channel.queue_delete("celery")
    said = worker.wait_line("Queue celery was deleted")

    def is_consumed() -> bool:
        with app.connection_for_write() as connection:
            try:
                declared = connection.default_channel.queue_declare("celery", passive=True)
            except NotFound:
                return False
        return declared.consumer_count > 0

    wait_until(is_consumed, "the worker has declared it again")
    return said
