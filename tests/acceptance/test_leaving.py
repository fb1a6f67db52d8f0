"""What others have left for a worker's end is done whichever way it leaves.

And SIGHUP, after which the same command starts anew.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from celery import Celery

from tests.support.broker import Broker
from tests.support.workers import Worker, wait_until_heard

#: Seconds. Much room after the hard deadline: the machine may be slow.
GRACE, HARD = 60.0, 3.0

pytestmark = pytest.mark.parametrize("broker", ["redis"], indirect=True)

WRONG = "Traceback|CRITICAL|Could not|Bad file descriptor"


def start(
    broker: Broker, pool: str, *args: str, app: str = "tests.apps.leaving", **env: str
) -> Worker:
    env = {
        **broker.env,
        "GRACE": str(GRACE),
        "CONF_graceful_hard_deadline": str(HARD),
        # Who holds the main thread for ever ends by it.
        "LAST_RESORT": "3" if pool in ("solo", "gevent") else "20",
        **env,
    }
    return Worker(app, pool=pool, env=env, args=args).ready()


def send(app: Celery, kind: str, **options: object) -> str:
    return str(app.send_task(f"tests.apps.lifecycle.{kind}", **options).id)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_with_a_task_that_never_ends(
    pool: str, broker: Broker, app: Celery, tmp_path: Path
) -> None:
    """What was revoked stays so for the next worker: the state file is written."""
    state = str(tmp_path / "state")
    with start(broker, pool, "--statedb", state) as worker:
        wait_until_heard(app)
        revoked = send(app, "short", countdown=600)
        worker.wait_line(f"short.{revoked}. received")
        app.control.revoke(revoked)
        worker.wait_line("flagged as revoked")
        stuck = send(app, "stuck")
        worker.wait_line(">> .* started stuck")
        worker.term()
        assert worker.wait() == 0
        assert worker.took < 30, "of 60 s of grace"
        assert worker.count(">> .* worker_shutdown") == 1
        assert worker.count(">> .* exit handler") == 1
        assert worker.count(WRONG) == 0
    assert sorted(broker.drain_queue(app)) == sorted([revoked, stuck])
    app.send_task("tests.apps.lifecycle.short", task_id=revoked)
    with start(broker, pool, "--statedb", state) as worker:
        worker.wait_line(f"Discarding revoked task: .*{revoked}")
        assert worker.count(">> .* started short") == 0


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_the_interpreter_ends_while_the_last_resort_does_so(
    pool: str, broker: Broker, app: Celery
) -> None:
    """Both come to the exit handlers."""
    env = {"GRACE": "30", "CONF_graceful_hard_deadline": "2.0", "LAST_RESORT": "3"}
    with start(broker, pool, **env, LATE_END="1") as worker:
        send(app, "stuck")
        worker.wait_line(">> .* started stuck")
        worker.term()
        assert worker.wait() == 0
        assert worker.count(">> .* exit handler") == 1
        assert worker.count(WRONG) == 0


@pytest.mark.parametrize("pool", ["prefork", "spawn", "threads"])
def test_three_new_starts_in_a_row(pool: str, broker: Broker, app: Celery, tmp_path: Path) -> None:
    """Each a drain: tasks are interrupted, and run again under a new identity."""
    pidfile, gate = tmp_path / "pid", tmp_path / "go"
    name = "tests.apps.leaving.held"
    sent = [str(app.send_task(name, [str(gate)]).id) for _ in range(2)]
    # They end by themselves, however long that takes.
    deadlines = {"GRACE": "60", "CONF_graceful_hard_deadline": "50"}
    with start(broker, pool, "--pidfile", str(pidfile), **deadlines) as worker:
        names = set()
        for n in range(3):
            worker.wait_line(">> .* started held", count=2 * (n + 1))
            gate.unlink(missing_ok=True)
            names |= broker.client.smembers("graceful:workers")
            for _ in range(n + 1):  # asking again changes nothing, while it stops
                # (To the group it would end the tracker of semaphores, where children are spawned.)
                worker.signal(signal.SIGHUP, group=n == 1 and pool == "prefork")
            gate.touch()
            worker.wait_line("Starting anew", count=n + 1)
            worker.wait_line(r"ready\.$", count=n + 2)
            assert int(pidfile.read_text()) == worker.pid
        worker.wait_line(">> .* started held", count=8)
        names |= broker.client.smembers("graceful:workers")
        assert len(names) == 4
        assert worker.count("Stopped: 0 finished, 2 interrupted, 0 given up, 0 released") == 3
        assert worker.count(">> .* worker_shutdown") == 3
        assert worker.count(">> .* exit handler") == 3
        assert worker.count(WRONG) == 0
        assert "Z" not in states_of_children(worker.pid)
        worker.term()
        assert worker.wait() == 0
    assert sorted(broker.drain_queue(app)) == sorted(sent)
    assert not pidfile.exists()


def states_of_children(pid: int) -> set[str]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    stats = [Path(f"/proc/{child}/stat").read_text() for child in children]
    return {stat.rpartition(")")[2].split()[0] for stat in stats}


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_stop_is_no_new_start(pool: str, broker: Broker, app: Celery) -> None:
    # Its task holds it up until it has heard of both.
    with start(broker, pool, GRACE="60", CONF_graceful_hard_deadline="50") as worker:
        sent = send(app, "shielded")
        worker.wait_line(">> .* started shielded")
        worker.signal(signal.SIGHUP)
        worker.wait_line("Stopping, asked for by SIGHUP")
        worker.term()
        worker.wait_line("SIGTERM: it will not start anew")
        worker.signal(signal.SIGQUIT)
        assert worker.wait() == 0
        assert worker.took < 30, "of 60 s of grace"
        assert worker.count(r"ready\.$") == 1
        assert worker.count("SIGTERM: it will not start anew") == 1
        assert worker.count(WRONG) == 0
    assert broker.drain_queue(app) == [sent]


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_new_start_without_a_task_that_never_ends(pool: str, broker: Broker, app: Celery) -> None:
    """It cannot be ended; the process that runs it becomes another one."""
    with start(broker, pool) as worker:
        sent = send(app, "stuck")
        worker.wait_line(">> .* started stuck")
        worker.signal(signal.SIGHUP)
        worker.wait_line("Stopped: .* 1 given up")
        worker.wait_line(f">> .* started stuck {sent}", count=2)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_spans_of_what_ran_last(pool: str, broker: Broker, app: Celery) -> None:
    """Agents of monitoring send them every now and then; children leave without exit handlers."""
    # It goes at the soft deadline, and is not taken away before it has.
    deadlines = {"CONF_graceful_soft_deadline": "0.5", "CONF_graceful_hard_deadline": "30"}
    with start(broker, pool, app="tests.apps.traced", **deadlines) as worker:
        send(app, "cooperative")
        send(app, "shielded")
        worker.wait_line(">> .* started cooperative")
        worker.wait_line(">> .* started shielded")
        worker.term()
        assert worker.wait() == 0
        for agent in "opentelemetry", "datadog":
            assert worker.count(f">> .* {agent}: cooperative IGNORED") == 1
            assert worker.count(f">> .* {agent}: shielded ") == 1
        assert worker.count(WRONG) == 0


@pytest.mark.parametrize(
    ("how", "agent"), [("BUFFERED", "buffer"), ("AGENT_AWAY", "opentelemetry")]
)
def test_who_sends_from_a_thread_has_a_second(
    how: str, agent: str, broker: Broker, app: Celery
) -> None:
    """In a child, as plain Celery's have: threads that nobody knows of, and all agents together."""
    env = {how: "1", "CONF_graceful_hard_deadline": "30"}
    with start(broker, "prefork", app="tests.apps.traced", **env) as worker:
        send(app, "cooperative")
        worker.wait_line(">> .* started cooperative")
        worker.term()
        assert worker.wait() == 0
        assert worker.took < 25, "no deadline is waited for"
        assert worker.count(f">> .* {agent}: cooperative IGNORED") == 1
        assert worker.count(WRONG) == 0
