"""What a worker on Redis holds, it holds: over lost connections, over time, and over its death."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import ExitStack

import pytest
import redis
from celery import Celery, chord

import celery_graceful
from celery_graceful import Graceful
from tests.support.broker import graceful_command
from tests.support.operators import command
from tests.support.raw import LOSES_EVENTS, Events
from tests.support.workers import TIMEOUT, Worker, end_leases, wait_until, wait_until_heard

#: Of who lives: no machine is so busy that it runs out. Of the dead it is ended by hand.
LEASE = {
    "CONF_graceful_lease_ttl": "10",
    "CONF_graceful_heartbeat_interval": "0.5",
    "CONF_graceful_rescue_interval": "0.5",
}
#: Of who is frozen.
QUICK_LEASE = {**LEASE, "CONF_graceful_lease_ttl": "3"}

#: What two processes or threads claim at once, by the default of `worker_prefetch_multiplier`.
WINDOW = 8


@pytest.fixture
def app(redis_db):
    with Celery("claims", broker=redis_db.url, backend=redis_db.backend_url) as app:
        yield app


@pytest.fixture
def start(redis_db):
    """Starts workers, and ends them after the test."""
    with ExitStack() as stack:

        def start(pool="prefork", concurrency=2, alone=True, **env):
            env = {
                "BROKER_URL": redis_db.url,
                "RESULT_URL": redis_db.backend_url,
                "GRACE": "60",
                **LEASE,
                **env,
            }
            return stack.enter_context(
                Worker(
                    "tests.apps.claims", pool=pool, concurrency=concurrency, env=env, alone=alone
                )
            )

        yield start


def send(app, name, *args, **options):
    return app.send_task(name, args, **options)


def kill_whole(worker, db):
    """As a platform kills a container; and its lease runs out."""
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    end_leases(db.client, worker)


def kill_connections(db):
    """Cut all connections to the broker, once the worker fetches or hears remote control."""
    number = str(db.client.connection_pool.connection_kwargs["db"])
    me = str(db.client.client_id())
    others = [c for c in db.client.client_list() if c["db"] == number and c["id"] != me]
    connected = any(
        other["cmd"] == "brpop" or int(other["sub"]) + int(other["psub"]) for other in others
    )
    for other in others if connected else ():
        db.client.client_kill_filter(_id=other["id"])
    return connected


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_lost_connections_start_nothing_twice(pool, start, app, redis_db, tmp_path):
    """Plain Celery starts again what it is still running, two seconds later."""
    # A full pool of greenlets blocks the consumer.
    concurrency = 6 if pool == "gevent" else 2
    worker = start(pool, concurrency, CONF_worker_prefetch_multiplier="2").ready()
    results = [send(app, "hold", str(tmp_path / "go")) for _ in range(4)]
    worker.wait_line(">> .* started", {"solo": 1, "gevent": 4}.get(pool, 2))
    # The loop of solo does not go round while a task runs: nothing connects again.
    for _ in range(1 if pool == "solo" else 20):
        wait_until(lambda: kill_connections(redis_db), "connected again")
    (tmp_path / "go").touch()
    ids = [result.id for result in results]
    assert sorted(result.get(timeout=TIMEOUT) for result in results) == sorted(ids)
    worker.term()
    assert worker.wait() == 0
    for task_id in ids:
        assert worker.count(f">> .* started {task_id}") == 1
        assert worker.count(f">> .* ended {task_id}") == 1
    assert redis_db.client.llen("celery") == 0
    assert not redis_db.client.keys("graceful:claims:*")


@pytest.mark.parametrize("pool", ["threads", "gevent", "eventlet", "solo"])
def test_an_acknowledgement_outlives_its_connection_and_its_worker(pool, start, app, redis_db):
    """It waits for a loop that does not go round again."""
    worker = start(pool, GRACE="60").ready()
    address = redis_db.client.connection_pool.connection_kwargs
    result = send(app, "cut_off", address["host"], address["port"])
    assert worker.wait() == 0
    assert worker.count(f">> .* started {result.id}") == 1
    with redis.Redis.from_url(redis_db.url, decode_responses=True) as client:
        assert client.llen("celery") == 0
        assert not client.keys("graceful:claims:*")


def test_from_a_shell(start, app, redis_db):
    """Where no worker is left to rescue."""
    # Of one that has just started, an expired lease says nothing.
    wait_until(lambda: redis_db.client.info("server")["uptime_in_seconds"] > 11)

    def rescue(*args, url=redis_db.url, status=0):
        """What the command says, in this process: it takes a second to start."""
        with Celery("claims", broker=url, set_as_current=False) as app:
            Graceful(app)
            return command(app, "rescue", *args, status=status)

    worker = start(concurrency=1, CONF_worker_prefetch_multiplier="2").ready()
    results = [send(app, "hold", 60) for _ in range(2)]
    worker.wait_line(">> .* started")
    wait_until(lambda: not redis_db.client.llen("celery"), "both fetched")
    assert "no worker is dead" in rescue()
    kill_whole(worker, redis_db)
    # It may have looked for dead ones itself, a moment before, which keeps others away.
    wait_until(lambda: not redis_db.client.exists("graceful:rescuer"))
    for _ in range(2):
        assert "is dead and holds 2 claims" in rescue("--dry-run", status=1)
    env = {"BROKER_URL": redis_db.url, **LEASE}
    assert graceful_command("tests.apps.claims", "rescue", env=env).endswith("2 went back\n")
    order = [
        json.loads(message)["headers"]["id"] for message in redis_db.client.lrange("celery", 0, -1)
    ]
    assert order[::-1] == [result.id for result in results]
    assert "no worker is dead" in rescue()
    assert "there is nothing to rescue" in rescue(url="amqp://127.0.0.1:1")
    assert "what a dead worker held is lost" in rescue(url="memory://", status=3)
    assert "Error: " in rescue(url="redis://127.0.0.1:1", status=3)


def test_a_message_for_a_frozen_worker_that_is_killed(start, app, redis_db):
    """Plain Celery: Redis hands it to the frozen one, and then it is in no key any more."""
    worker = start().ready()
    assert send(app, "hold", 0).get(timeout=TIMEOUT)
    os.killpg(worker.pid, signal.SIGSTOP)
    result = send(app, "hold", 0)
    kill_whole(worker, redis_db)
    start()
    assert result.get(timeout=TIMEOUT) == result.id


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_workers_that_know_each_other_claim_as_well(pool, start, app, redis_db, tmp_path):
    """Mingle and gossip consume over the channel of the tasks."""
    first = start(pool, alone=False).ready()
    worker = start(pool, alone=False).ready()
    first.term()
    assert first.wait() == 0
    result = send(app, "hold", str(tmp_path / "go"))
    worker.wait_line(">> .* started")
    assert not redis_db.client.exists("unacked")
    assert [redis_db.client.hlen(key) for key in redis_db.client.keys("graceful:claims:*")] == [1]
    wait_until_heard(app)
    kill_whole(worker, redis_db)
    (tmp_path / "go").touch()
    start(pool, alone=False)
    assert result.get(timeout=TIMEOUT) == result.id


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "eventlet"])
def test_a_full_pool_fetches_as_soon_as_there_is_room(pool, start, app):
    """Plain Celery looks for room every two seconds on green pools: this takes it 80 s."""
    worker = start(pool, CONF_worker_prefetch_multiplier="1").ready()
    results = [send(app, "hold", 0.05) for _ in range(80)]
    began = time.monotonic()
    for result in results:
        assert result.get(timeout=2 * TIMEOUT) == result.id
    assert time.monotonic() - began < 72
    worker.term()
    assert worker.wait() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_chord_on_a_worker_that_is_killed_whole(pool, start, app, redis_db, tmp_path):
    """Plain Celery: pending for ever."""
    worker = start(pool, concurrency=3).ready()
    header = [app.signature("hold", [str(tmp_path / "go")]) for _ in range(3)]
    body = chord(header, app=app)(app.signature("total"))
    worker.wait_line(">> .* started", 3)
    other = start(pool, concurrency=3).ready()
    kill_whole(worker, redis_db)
    other.wait_line(">> .* started", 3)
    (tmp_path / "go").touch()
    assert body.get(timeout=TIMEOUT) == 3
    other.wait_line(">> .* total 3")
    assert other.count(">> .* total 3") == 1


def test_from_plain_celery_and_back_while_it_runs(start, app, redis_db):
    """Worker by worker, with both kinds on the same queue in between."""
    results = []
    old = [start("threads", 2, PLAIN="1").ready() for _ in range(2)]
    new = []
    for worker in old:
        results += [send(app, "hold", 0.05) for _ in range(60)]
        worker.wait_line(">> .* started", 5)
        new.append(start("threads", 2).ready())
        worker.term()
        assert worker.wait() == 0
    back = []
    for worker in new:
        results += [send(app, "hold", 0.05) for _ in range(60)]
        worker.wait_line(">> .* started", 5)
        back.append(start("threads", 2, PLAIN="1").ready())
        worker.term()
        assert worker.wait() == 0
    for result in results:
        assert result.get(timeout=TIMEOUT) == result.id
    everybody = "\n".join(worker.output for worker in [*old, *new, *back])
    for result in results:
        assert everybody.count(f"started {result.id}") == 1
    keys = {"graceful:epoch"}
    left = {key for key in redis_db.client.keys("graceful:*") if redis_db.client.ttl(key) == -1}
    assert left <= keys


@pytest.mark.parametrize("task", ["hold", "hold_plain"])
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_worker_that_wakes_up_has_nothing_to_say(pool, task, start, app, redis_db, tmp_path):
    """Frozen for longer than its lease: each of its tasks has one outcome, that of another run."""
    events = Events(app)
    room = 1 if pool == "solo" else 2
    frozen = start(pool, room, CONF_worker_send_task_events="True", **QUICK_LEASE).ready()
    parts = [app.signature(task, [str(tmp_path / "go")]) for _ in range(room)]
    body = chord(parts, app=app)(app.signature("total"))
    ids = [part.id for part in body.parent.children]
    frozen.wait_line(">> .* started", room)
    client = redis_db.client
    wait_until(lambda: sum(map(client.scard, client.keys("graceful:begun:*"))) == room)
    os.killpg(frozen.pid, signal.SIGSTOP)
    other = start(pool, room, CONF_worker_send_task_events="True")
    other.wait_line(">> .* started", room)
    other.wait_line("its worker is dead, or was frozen for longer than its lease, death 1", room)
    assert len(client.keys("graceful:deaths:*")) == room
    (tmp_path / "go").touch()
    assert body.get(timeout=TIMEOUT) == room
    os.killpg(frozen.pid, signal.SIGCONT)
    frozen.wait_line("The lease ran out while this worker lived")
    wait_until(lambda: not client.keys("graceful:deaths:*"), "it has not died of them")
    other.term()
    assert other.wait() == 0
    # It goes on with new work, and has as much of it at once as before.
    again = [send(app, task, str(tmp_path / "again")) for _ in range(3 * WINDOW)]
    if pool in ("prefork", "threads"):  # the others fetch nothing while there is no room to run it
        wait_until(
            lambda: [client.hlen(key) for key in client.keys("graceful:claims:*")] == [WINDOW],
            "its prefetch window is full",
        )
    (tmp_path / "again").touch()
    for result in again:
        assert result.get(timeout=TIMEOUT) == result.id
        frozen.wait_line(f">> .* ended {result.id}")
    frozen.term()
    assert frozen.wait() == 0
    seen = events.all()
    for task_id in ids:
        assert app.AsyncResult(task_id).state == "SUCCESS"
        succeeded = seen[task_id].count("task-succeeded")
        lossy = pool == "threads" and LOSES_EVENTS
        assert succeeded == 1 or (lossy and not succeeded)
        assert "task-failed" not in seen[task_id]
    assert frozen.count(">> .* total") + other.count(">> .* total") == 1
    assert redis_db.client.llen("celery") == 0
    assert not redis_db.client.keys("graceful:claims:*")
    assert not redis_db.client.smembers("graceful:workers")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_that_wakes_up_ends_what_nobody_else_has(pool, start, app, redis_db, tmp_path):
    """What was acknowledged at its start is not rescued: it is this worker's, or nobody's."""
    frozen = start(pool, 2, **QUICK_LEASE).ready()
    running = [send(app, "hold_early", str(tmp_path / "go")) for _ in range(2)]
    frozen.wait_line(">> .* started", 2)
    prefetched = send(app, "hold_early", 0)
    frozen.wait_line(rf"hold_early\[{prefetched.id}\] received")
    wait_until(
        lambda: len(redis_db.client.hvals(redis_db.client.keys("graceful:claims:*")[0])) == 1
    )
    os.killpg(frozen.pid, signal.SIGSTOP)
    other = start(pool, 2)
    assert prefetched.get(timeout=TIMEOUT) == prefetched.id
    os.killpg(frozen.pid, signal.SIGCONT)
    frozen.wait_line("The lease ran out while this worker lived")
    other.term()  # or it takes the frozen one for dead once more, if that stands still
    assert other.wait() == 0
    (tmp_path / "go").touch()
    for result in running:
        assert result.get(timeout=TIMEOUT) == result.id
    again = [send(app, "hold_early", 0) for _ in range(10)]
    for result in again:
        assert result.get(timeout=TIMEOUT) == result.id
    frozen.term()
    assert frozen.wait() == 0
    for result in [*running, prefetched, *again]:
        assert (frozen.output + other.output).count(f"started {result.id}") == 1
    assert not redis_db.client.keys("graceful:claims:*")


@pytest.mark.slow
def test_solid_queue_568_a_worker_that_drains_is_not_taken_for_dead(start, app, redis_db, tmp_path):
    """There the heartbeat ends as the stop begins, and others fail what still runs."""
    ttl = 12  # of five workers, each of which may stand still
    lease = {"CONF_graceful_lease_ttl": str(ttl), "CONF_graceful_heartbeat_interval": "1"}
    draining = start(GRACE="120", **lease).ready()
    results = [send(app, "hold", str(tmp_path / "go")) for _ in range(2)]
    draining.wait_line(">> .* started", 2)
    healthy = [start(**lease).ready() for _ in range(3)]
    (key,) = [
        key
        for key in redis_db.client.keys("graceful:lease:*")
        if json.loads(redis_db.client.get(key))["pid"] == draining.pid
    ]
    draining.term()
    wait_until(lambda: json.loads(redis_db.client.get(key))["phase"] == "QUIET", "a heartbeat")
    beat = json.loads(redis_db.client.get(key))
    assert sorted(beat["running"]) == sorted(f"hold[{result.id}]" for result in results)
    assert 0 <= beat["loop_lag"] < 15
    assert beat["celery_graceful"] == celery_graceful.__version__
    assert beat["seconds_left"] > 30
    wait_until(lambda: time.monotonic() > draining.stopped_at + ttl + 3, "longer than its lease")
    (tmp_path / "go").touch()
    for result in results:
        assert result.get(timeout=TIMEOUT) == result.id
    assert draining.wait() == 0
    assert draining.count(">> .* ended") == 2
    for worker in healthy:
        assert worker.count(">> .* started") == 0
        assert worker.count("Rescued") == 0
        worker.term()
        assert worker.wait() == 0
    assert not redis_db.client.smembers("graceful:workers")


@pytest.mark.parametrize("task", ["hold", "hold_plain"])
def test_longer_than_the_visibility_timeout(task, start, app, redis_db):
    """A task, and an ETA, of many times the visibility timeout run once."""
    options = {"CONF_broker_transport_options": repr({"visibility_timeout": 1})}
    workers = [start(**options).ready() for _ in range(2)]
    results = [send(app, task, 4), send(app, task, 0, countdown=4)]
    for result in results:
        assert result.get(timeout=TIMEOUT) == result.id
        assert sum(w.count(f">> .* started {result.id}") for w in workers) == 1
    assert redis_db.client.llen("celery") == 0
