"""Stops under hard conditions: whatever the task, the broker or the main thread does."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import psutil
import pytest
from celery import Celery
from celery.exceptions import TaskError

from tests.servers import RedisServer
from tests.support.broker import Broker
from tests.support.distance import far_away
from tests.support.raw import Events
from tests.support.workers import TIMEOUT, Worker, wait_until, wait_until_heard

pytestmark = pytest.mark.slow

#: Seconds. Much room after the hard deadline: the machine may be slow.
GRACE, HARD = 60.0, 3.0
#: With the hard deadline at the beginning of it.
IN_TIME = 30.0
POOLS = ["prefork", "spawn", "threads", "gevent", "eventlet", "solo"]
IN_PROCESS = POOLS[2:]

#: For what has nothing to do with the broker: how a message goes back is seen elsewhere.
on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)


def on_both(*pools: str) -> pytest.MarkDecorator:
    """Each pool on Redis, and the two that differ most on RabbitMQ."""
    cases = [*((pool, "redis") for pool in pools), ("prefork", "rabbitmq"), ("threads", "rabbitmq")]
    return pytest.mark.parametrize(("pool", "broker"), cases, indirect=["broker"])


def start(pool: str, broker: Broker, concurrency: int = 4, **env: str) -> Worker:
    return Worker(
        "tests.apps.hard_times",
        pool=pool,
        concurrency=min(concurrency, 2) if pool == "spawn" else concurrency,  # half a second each
        env={
            **broker.env,
            "GRACE": str(GRACE),
            "CONF_graceful_hard_deadline": str(HARD) if "GRACE" not in env else "None",
            "LAST_RESORT": "3" if pool == "solo" else "20",  # that one ends by it
            **env,
        },
    )


def send(app: Celery, name: str, *args: object, **options: object) -> str:
    return str(app.send_task(f"tests.apps.hard_times.{name}", args, **options).id)


def send_and_wait(app: Celery, worker: Worker, name: str, *args: object) -> str:
    task_id = send(app, name, *args)
    worker.wait_line(f">> .* started {name}")
    return task_id


def gone_in_time(worker: Worker, status: int = 0) -> None:
    assert worker.wait() == status
    assert worker.took < IN_TIME


# -- tasks ---------------------------------------------------------------------------


@on_redis
@pytest.mark.parametrize("pool", IN_PROCESS)
def test_the_gil_is_held_for_seconds(pool: str, broker: Broker, app: Celery) -> None:
    with start(pool, broker) as worker:
        worker.ready()
        task_id = send_and_wait(app, worker, "hogging", 1.5)
        worker.term()
        gone_in_time(worker)
        finished = worker.count(f"finished {task_id}")
    assert broker.drain_queue(app, at_least=1 - finished) == [task_id] * (1 - finished)


@pytest.mark.parametrize(
    ("pool", "broker"),
    [*((pool, "redis") for pool in IN_PROCESS), ("threads", "rabbitmq")],
    indirect=["broker"],
)
def test_the_gil_is_held_for_ever(pool: str, broker: Broker, app: Celery) -> None:
    """Nothing in the process runs any more: the helper process ends it."""
    with start(pool, broker, GRACE="2") as worker:
        worker.ready()
        task_id = send_and_wait(app, worker, "deadlocked")
        worker.term()
        assert worker.wait() == -signal.SIGKILL
        # At 1.92 s; how soon that is seen here says more of the machine.
        assert worker.took < IN_TIME
    if broker.name == "rabbitmq":
        assert broker.drain_queue(app, at_least=1) == [task_id]
    else:
        assert broker.held() == 1  # until the visibility timeout gives it back


@on_redis
@pytest.mark.parametrize("pool", IN_PROCESS)
def test_a_task_that_is_left_by_no_exception(pool: str, broker: Broker, app: Celery) -> None:
    """It has failed, and nothing of it is left when the worker stops."""
    with start(pool, broker) as worker:
        worker.ready()
        wait_until_heard(app)
        for name in ("leaving", "leaving_early"):
            for how, what in (("exit", "SystemExit(3)"), ("raise", "Left('on purpose')")):
                found = app.AsyncResult(send(app, name, how)).get(TIMEOUT, propagate=False)
                assert isinstance(found, TaskError)
                assert what in str(found)
        # A result is there before the worker has heard of the end.
        inspect = app.control.inspect(timeout=TIMEOUT, limit=1)
        wait_until(lambda: [*inspect.active().values()] == [[]], "nothing is active")
        worker.term()
        gone_in_time(worker)
        assert worker.count("Stopped: 0 finished, 0 interrupted, 0 given up, 0 released") == 1
    assert broker.drain_queue(app) == []
    assert broker.held() == 0


@on_both(*POOLS)
def test_what_comes_late_goes_back_as_well(
    pool: str, broker: Broker, app: Celery, tmp_path: Path
) -> None:
    """Read when the drain has begun, since there was no room: Celery would keep it for its ETA."""
    gate = tmp_path / "go"
    with start(pool, broker, concurrency=1, GRACE="60") as worker:
        worker.ready()
        running = send_and_wait(app, worker, "gated", str(gate))
        waiting = [send(app, "patient", 0), send(app, "patient", 0, countdown=3600)]
        worker.term()
        worker.wait_line("Stopping, asked for by")
        gate.touch()
        assert worker.wait() == 0
        assert worker.took < 30, "it waits for no deadline"
        assert worker.count(f"finished {running}") == 1
        assert worker.count(r"Stopped: 1 finished, 0 interrupted, 0 given up") == 1
    assert sorted(broker.drain_queue(app, at_least=2)) == sorted(waiting)
    assert broker.held() == 0


def test_solo_with_prefetched_tasks_that_stay(broker: Broker, app: Celery, tmp_path: Path) -> None:
    gate = tmp_path / "go"
    env = {"CONF_graceful_release_prefetched": "False", "GRACE": "60"}
    with start("solo", broker, **env) as worker:
        worker.ready()
        first = send_and_wait(app, worker, "gated", str(gate))
        second = send(app, "patient", 0)
        worker.term()
        worker.wait_line("Stopping, asked for by")
        gate.touch()
        assert worker.wait() == 0
        assert worker.count(f"finished {first}") == 1
        finished = worker.count(f"finished {second}")
        assert worker.count(f"Stopped: {1 + finished} finished, 0 interrupted, 0 given up") == 1
    assert broker.drain_queue(app, at_least=1 - finished) == [second] * (1 - finished)


@on_redis
@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_waits_for_a_subprocess(pool: str, broker: Broker, app: Celery) -> None:
    with start(pool, broker) as worker:
        worker.ready()
        task_id = send(app, "forking")
        child = int(worker.wait_line(">> .* started forking").split()[-1])
        worker.term()
        gone_in_time(worker)
    os.kill(child, signal.SIGKILL)
    assert broker.drain_queue(app, at_least=1) == [task_id]


def test_a_child_that_dies_while_stopping(broker: Broker, app: Celery) -> None:
    with start("prefork", broker, CONF_worker_lost_wait="0.2") as worker:
        worker.ready()
        task_id = send_and_wait(app, worker, "child_process_gone")
        worker.term()
        gone_in_time(worker)
    assert broker.drain_queue(app, at_least=1) == [task_id]
    assert app.AsyncResult(task_id).state in ("PENDING", "INTERRUPTED")


@on_redis
@pytest.mark.parametrize("pool", POOLS)
def test_hooks_and_callbacks(pool: str, broker: Broker, app: Celery, tmp_path: Path) -> None:
    """What takes long is named, what raises is logged, and neither costs the deadline."""
    named = {
        "with_callbacks": "interrupt callback .*slow takes long",
        "with_slow_hook": "on_interrupted of .* takes long",
    }
    for these in [[name] for name in named] if pool == "solo" else [[*named]]:
        with start(pool, broker, concurrency=2, GRACE="60") as worker:
            worker.ready()
            for name in these:
                send_and_wait(app, worker, name, str(tmp_path / name))
            worker.term()
            for name in these:
                worker.wait_line(named[name])  # while it does so
                (tmp_path / name).touch()
            gone_in_time(worker)
            assert [worker.count(named[name]) for name in these] == [1] * len(these)
            if "with_callbacks" in these:
                assert worker.count(">> .* called shutdown") == 1
                assert worker.count("Interrupt callback .*raising raised") == 1
                done = worker.lines.index(worker.wait_line(">> .* callbacks done"))
                slow = worker.lines.index(worker.wait_line("callback .*slow took"))
                assert slow < done, "leaving the block waits for the callback"
            if "with_slow_hook" in these:
                assert worker.count(">> .* hook shutdown QUIET") == 1
            broker.drain_queue(app)


def test_phases_and_time_left(broker: Broker, app: Celery) -> None:
    # It ends with the second phase. Both last for long: it may not look for a while.
    deadlines = {"CONF_graceful_soft_deadline": "8.0", "CONF_graceful_hard_deadline": "28.0"}
    with start("prefork", broker, **deadlines) as worker:
        worker.ready()
        send_and_wait(app, worker, "phases")
        worker.term()
        gone_in_time(worker)
        left = {found[1]: float(found[2]) for found in worker.find(r">> .* phase (\w+) (\S+)")}
        assert list(left) == ["QUIET", "SOFT"]
        assert left["SOFT"] <= 20.0
        assert left["SOFT"] < left["QUIET"] <= 28.0


# -- signals -------------------------------------------------------------------------


@on_redis
@pytest.mark.parametrize("pool", POOLS)
def test_a_second_term_changes_nothing(
    pool: str, broker: Broker, app: Celery, tmp_path: Path
) -> None:
    gate = tmp_path / "go"
    with start(pool, broker, GRACE="60") as worker:
        worker.ready()
        task_id = send_and_wait(app, worker, "gated", str(gate))
        worker.term()
        worker.wait_line("Stopping, asked for by SIGTERM")
        worker.term()
        worker.term(group=True)
        gate.touch()
        assert worker.wait() == 0
        assert worker.count(f"finished {task_id}") == 1
        assert worker.count("Stopping") == 1
    assert broker.drain_queue(app) == []


@on_redis
@pytest.mark.parametrize(
    ("pool", "how"),
    [
        *((pool, "quit while stopping") for pool in POOLS),
        *((pool, "quit at once") for pool in ("prefork", "threads", "solo")),
        *((pool, "two interrupts") for pool in ("prefork", "gevent", "solo")),
    ],
)
def test_a_jump_to_the_hard_deadline(pool: str, how: str, broker: Broker, app: Celery) -> None:
    with start(pool, broker, GRACE="60") as worker:
        worker.ready()
        task_id = send_and_wait(app, worker, "swallowing")
        if how == "quit at once":
            worker.signal(signal.SIGQUIT)
        else:
            worker.signal(signal.SIGTERM if how == "quit while stopping" else signal.SIGINT)
            worker.wait_line("Stopping, asked for by")
            worker.signal(signal.SIGQUIT if how == "quit while stopping" else signal.SIGINT)
        assert worker.wait() == 0
        assert worker.took < 40, "of 60 s of grace"
        assert broker.drain_queue(app, at_least=1) == [task_id]


@on_redis
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "eventlet"])
def test_what_is_given_up_at_once_has_not_failed(pool: str, broker: Broker, app: Celery) -> None:
    """Those that heard of a stop late were still told to end by its limit."""
    with start(pool, broker, concurrency=12, GRACE="60") as worker:
        worker.ready()
        ids = [send(app, "plain_early") for _ in range(12)]
        worker.wait_line(">> .* started plain_early", count=12)
        worker.signal(signal.SIGQUIT)
        assert worker.wait() == 0
        assert worker.count("ShutdownTimeLimit|succeeded in") == 0
        assert worker.count(">> .* left") == (0 if pool == "prefork" else 12)
    assert sorted(broker.drain_queue(app, at_least=12)) == sorted(ids)
    assert {app.AsyncResult(each).state for each in ids} == {"INTERRUPTED"}


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_what_ends_after_it_was_given_up(
    pool: str, broker: Broker, app: Celery, tmp_path: Path
) -> None:
    """Its message is back: the run that counts is another one."""
    gate, free = tmp_path / "go", tmp_path / "free"
    names = ["ending_late", "early_ending_late", "plain_ending_late"]
    # The last resort is not due before they have ended.
    with start(pool, broker, GRACE="240", HANG="24", HANG_UNTIL=str(free)) as worker:
        worker.ready()
        ids = [send_and_wait(app, worker, name, str(gate)) for name in names]
        worker.signal(signal.SIGQUIT)
        worker.wait_line(">> .* hangs")  # given up, and still there
        gate.touch()
        for each in ids:
            worker.wait_line(f">> .* ended {each}")
        free.touch()
        assert worker.wait() == 0
    assert sorted(broker.drain_queue(app, at_least=3)) == sorted(ids)
    assert {app.AsyncResult(each).state for each in ids} == {"INTERRUPTED"}


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_quiet_stops_fetching_and_nothing_else(pool: str, broker: Broker, app: Celery) -> None:
    with start(pool, broker, concurrency=1) as worker:
        worker.ready()
        running = send_and_wait(app, worker, "waiting")
        waiting = send(app, "waiting")
        worker.wait_line(r"waiting\[.*\] received", count=2) if pool == "prefork" else None
        wait_until_heard(app)
        assert app.control.broadcast("quiet", reply=True, timeout=TIMEOUT, limit=1)
        worker.wait_line("Quiet, asked for by remote control")
        after = send(app, "waiting")
        (active,) = app.control.inspect(timeout=TIMEOUT, limit=1).active().values()
        assert [task["id"] for task in active] == [running], "it runs"
        assert worker.count("interrupted: it goes back") == 0
        worker.term()
        gone_in_time(worker)
        assert worker.count(f"started waiting {running}") == 1
        assert worker.count(">> .* started waiting") == 1
    assert sorted(broker.drain_queue(app, at_least=3)) == sorted([running, waiting, after])


# -- remote control ------------------------------------------------------------------


@on_both("prefork", "threads", "gevent", "eventlet")
def test_remote_control_lives_through_the_drain(
    pool: str, broker: Broker, app: Celery, tmp_path: Path
) -> None:
    gate = tmp_path / "asked"
    with start(pool, broker, GRACE="60") as worker:
        worker.ready()
        wait_until_heard(app)
        task_id = send_and_wait(app, worker, "gated", str(gate))
        worker.term()
        worker.wait_line("Stopping, asked for by")
        assert app.control.inspect(timeout=TIMEOUT, limit=1).ping()
        active = app.control.inspect(timeout=TIMEOUT, limit=1).active()
        assert [task["id"] for tasks in active.values() for task in tasks] == [task_id]
        gate.touch()
        assert worker.wait() == 0
    assert broker.drain_queue(app) == []


def test_revoke_terminate_and_hard_limits_work_as_ever(broker: Broker, app: Celery) -> None:
    """With a process group's SIGTERM harmless to children, one child can still be meant."""
    with start("prefork", broker, concurrency=2, PATIENT="1") as worker:
        worker.ready()
        wait_until_heard(app)
        worker.signal(signal.SIGCONT, group=True)
        task_id = send_and_wait(app, worker, "terminable")
        app.control.revoke(task_id, terminate=True)
        worker.wait_line(">> .* unwound terminable")
        limited = send_and_wait(app, worker, "hard_limited")
        worker.wait_line(">> .* unwound hard_limited")
        worker.wait_line("Hard time limit")
        assert worker.count("Stopping") == 0, "a child's signal is not the worker's"
        worker.stopped_at = 0
        worker.term()
        gone_in_time(worker)
    assert app.AsyncResult(task_id).state == "REVOKED"
    assert app.AsyncResult(limited).state == "FAILURE"
    assert broker.drain_queue(app) == []


# -- prefetched ----------------------------------------------------------------------


@on_both("prefork", "threads", "gevent", "eventlet")
def test_everything_not_started_is_back_while_a_task_runs(
    pool: str, broker: Broker, app: Celery, tmp_path: Path
) -> None:
    """Prefetched, waiting for their time, and held by a rate limit."""
    gate = tmp_path / "go"
    with start(pool, broker, concurrency=1, GRACE="120") as worker:
        worker.ready()
        with app.pool.acquire():
            eta = send(app, "patient", 0, countdown=3600)
            worker.wait_line(rf"\[{eta}\] received")
            rated = [send(app, "limited_rate") for _ in range(2)]
            worker.wait_line(rf"\[{rated[1]}\] received")
            running = send_and_wait(app, worker, "gated", str(gate))
            prefetched = send(app, "waiting")
            if pool not in ("gevent", "eventlet"):
                worker.wait_line(rf"\[{prefetched}\] received")
            worker.term()
            back = set(broker.drain_queue(app, at_least=3))
            assert back == {eta, rated[1], prefetched}
            gate.touch()
            assert worker.wait() == 0
            assert worker.count(f"finished {running}") == 1


def test_solo_gives_back_what_it_has_not_read(broker: Broker, app: Celery, tmp_path: Path) -> None:
    """Its loop waits for the task that runs, which knows nothing of the stop."""
    gate = tmp_path / "go"
    others = [send(app, "patient", 0, countdown=3600)]
    running = send(app, "gated", str(gate))
    others += [send(app, "waiting") for _ in range(2)]
    with start("solo", broker, GRACE="120") as worker:
        worker.wait_line(f"started gated {running}")
        worker.term()
        assert set(broker.drain_queue(app, at_least=len(others))) == set(others)
        gate.touch()
        assert worker.wait() == 0
        assert worker.count(f"finished {running}") == 1
        assert worker.count("started") == 1
    assert broker.drain_queue(app) == []
    assert broker.held() == 0


# -- brokers -------------------------------------------------------------------------


def test_a_stop_while_starting_up_without_a_broker(redis_db) -> None:
    env = {"BROKER_URL": "redis://127.0.0.1:1/0", "GRACE": str(GRACE)}
    for pool in ("prefork", "gevent"):
        with Worker("tests.apps.hard_times", pool=pool, env=env) as worker:
            worker.wait_line("Cannot connect")
            worker.term()
            gone_in_time(worker)


@pytest.mark.parametrize("pool", POOLS)
def test_the_broker_is_gone(pool: str, start_server, redis_db) -> None:
    """Killed while tasks run; the worker tries to reconnect when it is told to stop."""
    server = start_server(RedisServer)
    broker = Broker("redis", server.url(0), redis_db.backend_url, server.client(0))
    # Who is woken by the soft deadline has time to say so.
    wakes = pool not in ("threads", "solo")
    deadlines = {"CONF_graceful_soft_deadline": "0.5", "LAST_RESORT": "3"}
    deadlines |= {"CONF_graceful_hard_deadline": "12.0"} if wakes else {}
    with broker.app() as app, start(pool, broker, concurrency=2, **deadlines) as worker:
        worker.ready()
        send_and_wait(app, worker, "swallowing")
        if wakes:
            send_and_wait(app, worker, "napping")
        server.kill()
        if pool != "solo":
            worker.wait_line("Connection to broker lost|Cannot connect")
        worker.term()
        assert worker.wait() in (0, 1)
        assert worker.took < IN_TIME
        assert worker.count(">> .* woken") == wakes
        assert worker.count("Could not give .*swallowing.* back") == 1
        assert not worker.count("stays in Redis: (?!the broker)")  # says which one
        assert not re.search("Could not give .*\nTraceback", worker.output)  # an outage is no fault


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_redis_is_silent_while_a_claim_goes_back(
    pool: str, start_server, redis_db, tmp_path: Path
) -> None:
    """It goes back when Redis answers again; the worker lives."""
    server = start_server(RedisServer)
    broker = Broker("redis", server.url(0), redis_db.backend_url, server.client(0))
    with broker.app() as app, start(pool, broker, concurrency=2) as worker:
        worker.ready()
        task_id = send_and_wait(app, worker, "rejecting", str(tmp_path / "go"))
        server.pause()
        (tmp_path / "go").touch()
        worker.wait_line("goes back when Redis answers")
        server.resume()
        worker.wait_line(f">> .* finished {task_id}")
        worker.term()
        gone_in_time(worker)
    assert broker.held() == 0


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_redis_is_silent_for_a_part_of_the_stop(pool: str, start_server, redis_db) -> None:
    """All goes back when Redis answers again, and the exit status says so."""
    server = start_server(RedisServer)
    broker = Broker("redis", server.url(0), redis_db.backend_url, server.client(0))
    with broker.app() as app, start(pool, broker, GRACE=str(GRACE), LAST_RESORT="20") as worker:
        worker.ready()
        task_id = send_and_wait(app, worker, "waiting")
        server.pause()
        worker.term()
        worker.wait_line("Could not give .*waiting.* back")
        server.resume()
        gone_in_time(worker)
        assert broker.drain_queue(app, at_least=1) == [task_id]
    assert broker.held() == 0


@pytest.mark.parametrize(
    ("kind", "pool"),
    [
        *(("redis", pool) for pool in POOLS),
        *(("rabbitmq", pool) for pool in ("prefork", "threads", "gevent", "solo")),
    ],
)
def test_the_broker_is_silent(
    pool: str, kind: str, request: pytest.FixtureRequest, start_server, redis_db
) -> None:
    """Stopped in its tracks (SIGSTOP): connections are open and nothing answers."""
    if kind == "redis":  # one beside that of the results
        server = start_server(RedisServer)
        url = server.url(0)
    else:
        server = request.getfixturevalue("own_rabbit_server")
        server.ensure_running()
        url = server.url(server.vhost())
    broker = Broker("any", url, redis_db.backend_url, None)
    # A part of the grace is for a broker that may answer yet.
    grace = {"GRACE": "24", "CONF_graceful_hard_deadline": str(HARD), "LAST_RESORT": "3"}
    with broker.app() as app, start(pool, broker, concurrency=2, **grace) as worker:
        worker.ready()
        tasks = ["swallowing"] if pool == "solo" else ["swallowing", "waiting"]
        ids = [send_and_wait(app, worker, name) for name in tasks]
        server.pause()
        worker.term()
        assert worker.wait() in (0, 1)
        assert worker.took < 24
        server.resume()
        if kind == "rabbitmq":
            assert sorted(broker.drain_queue(app, at_least=len(ids))) == sorted(ids)


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_the_broker_is_far_away(pool: str, rabbit_vhost, redis_db) -> None:
    """A handshake takes 1.4 s, and what is sent then more than that where the machine is slow.

    It begins 2 s before the hard deadline.
    """
    broker = Broker("rabbitmq", rabbit_vhost.url, redis_db.backend_url, redis_db.client)
    with far_away(rabbit_vhost.server.port, seconds=0.11) as way, broker.app() as app:
        events = Events(app)
        url = rabbit_vhost.server.url(rabbit_vhost.name, way.port)
        env = {"BROKER_URL": url, "CONF_worker_send_task_events": "1", "GRACE": "60"}
        env["CONF_graceful_hard_deadline"] = "5.0"
        with start(pool, broker, concurrency=2, **env) as worker:
            worker.ready()
            # Acknowledged already: it has to be sent again.
            tasks = ["early_swallowing"] if pool == "solo" else ["early_swallowing", "swallowing"]
            ids = [send_and_wait(app, worker, name) for name in tasks]
            worker.term()
            assert worker.wait() == 0
            assert worker.took < IN_TIME
            assert worker.count("No time to tell|Could not") == 0
        for each in ids:
            events.wait(each, "task-interrupted")
        seen = events.all()
        app.pool.force_close_all()
        # Then what it had not acknowledged is back, too.
        wait_until(lambda: not rabbit_vhost.connections(), "the broker has seen it leave")
        assert sorted(broker.drain_queue(app, at_least=len(ids))) == sorted(ids)
        assert [seen[each].count("task-interrupted") for each in ids] == [1] * len(ids)
        assert {app.AsyncResult(each).state for each in ids} == {"INTERRUPTED"}


def test_the_main_thread_hangs(broker: Broker, app: Celery) -> None:
    """In the end, in somebody else's code."""
    for pool in ("prefork", "threads", "gevent"):
        with start(pool, broker, HANG="3") as worker:
            worker.ready()
            send_and_wait(app, worker, "waiting")
            children = psutil.Process(worker.pid).children(recursive=True)  # while it is there
            worker.term()
            worker.wait_line(">> .* hangs")
            gone_in_time(worker)
            _, alive = psutil.wait_procs(children, timeout=TIMEOUT)
            assert not alive
            assert worker.count("Stopped: .* 1 interrupted") == 1
        assert len(broker.drain_queue(app, at_least=1)) == 1
        assert broker.client.keys("graceful:lease:*") == [], "nobody has to wait for it to run out"


# -- limits and warnings -------------------------------------------------------------


@on_redis
@pytest.mark.parametrize("pool", POOLS)
def test_ordinary_soft_time_limits(pool: str, broker: Broker, app: Celery) -> None:
    ways = ["naps", "computes", "waits"] + ["sleeps"] * (pool != "threads")
    with start(pool, broker, concurrency=1) as worker:
        worker.ready()
        for way in ways:
            task_id = send(app, "limited", way)
            worker.wait_line(f">> .* limited {way} SoftTimeLimitExceeded False")
            worker.wait_line(rf"limited\[{task_id}\] raised unexpected: SoftTimeLimitExceeded")
            with pytest.raises(Exception, match="SoftTimeLimit"):
                app.AsyncResult(task_id).get(timeout=TIMEOUT)
        worker.term()
        gone_in_time(worker)


@on_redis
def test_what_is_superseded_is_said_once(broker: Broker, app: Celery) -> None:
    env = {"REMAP_SIGTERM": "SIGQUIT", "CONF_worker_soft_shutdown_timeout": "30"}
    with start("prefork", broker, **env) as worker:
        worker.ready()
        task_id = send_and_wait(app, worker, "waiting")
        worker.term()
        gone_in_time(worker)
        line = worker.wait_line("superseded")
        assert "REMAP_SIGTERM=SIGQUIT" in line
        assert "worker_soft_shutdown_timeout=30" in line
        assert worker.count("superseded") == 1
        assert broker.drain_queue(app, at_least=1) == [task_id]
