"""What was claimed and not started goes back together at a stop, however many messages it is."""

from __future__ import annotations

import json

import pytest
from celery import Celery

from celery_graceful import Graceful
from celery_graceful.operations import Operations
from tests.servers import RedisServer
from tests.support.distance import far_away
from tests.support.workers import Worker, wait_until

#: Messages that a worker claims, and the most commands that may give them back: once for those that
#: a request answers for, and once for others, where Redis may not know the script yet.
CLAIMED, FEW = 40, 4

POOLS = ["gevent", "eventlet", "solo", "threads", "prefork"]
ENV = {"GRACE": "60", "CONF_graceful_lease_ttl": "30"}
#: Seconds that a packet is on its way to a server that is far away: a stop is asked for meanwhile.
FAR = 0.3


@pytest.fixture
def server(start_server):
    """A Redis that remembers all that it was told."""
    options = {"slowlog-log-slower-than": "0", "slowlog-max-len": "100000"}
    return start_server(RedisServer, options=options)


@pytest.fixture
def app(server):
    with Celery("claims", broker=server.url(0), set_as_current=False) as app:
        Graceful(app)
        yield app


def worker_of(url, server, pool):
    places = 1 if pool == "solo" else 2
    env = {"BROKER_URL": url, "RESULT_URL": server.url(1), **ENV}
    env["CONF_worker_prefetch_multiplier"] = str(CLAIMED // places)
    # Celery hangs with eventlet where a connection is closed while a heartbeat is sent over it.
    args = ("--without-heartbeat",)
    return Worker("tests.apps.claims", pool=pool, concurrency=places, env=env, args=args)


def claims_of(client):
    return sum(client.hlen(key) for key in client.keys("graceful:claims:*"))


def waiting(client):
    return [json.loads(text)["headers"]["id"] for text in client.lrange("celery", 0, -1)][::-1]


def commands(client):
    """How many commands gave claims back, and how many wrote history."""
    told = [entry["command"].decode(errors="replace") for entry in client.slowlog_get(100000)]
    scripts = [command for command in told if command.startswith("EVAL")]
    return [sum(key in command for command in scripts) for key in ("graceful:back:", ":history")]


@pytest.mark.parametrize("task", ["hold", "hold_early"])
@pytest.mark.parametrize("pool", POOLS)
def test_of_a_full_pool(pool, task, server, app, tmp_path):
    """Those that no place was free for were given back one by one, with two round trips each."""
    places = 1 if pool == "solo" else 2
    ids = [app.send_task(task, [str(tmp_path / "go")]).id for _ in range(CLAIMED)]
    with server.client(0) as client, worker_of(server.url(0), server, pool) as worker:
        worker.wait_line(">> .* started", places)
        wait_until(lambda: not client.exists("celery"), "claimed")
        client.slowlog_reset()
        worker.term()
        begun = {found[1] for found in worker.find(r">> .* started (\S+)")}
        back = [task_id for task_id in ids if task_id not in begun]
        wait_until(lambda: client.llen("celery") == len(back), "back in the queue")
        assert waiting(client) == back
        (tmp_path / "go").touch()
        assert worker.wait() == 0
        assert worker.count(f"Stopped: {places} finished, .* {len(back)} released") == 1
        assert not claims_of(client)
        given_back, written = commands(client)
        assert 0 < given_back <= FEW
        assert 0 < written <= FEW
    told = Operations(app).history().moments
    assert sorted(entry.id for entry in told) == sorted(back)
    assert {(str(entry.kind), entry.task, entry.reason) for entry in told} == {
        ("released", task, "shutdown")
    }


@pytest.mark.parametrize("pool", POOLS)
def test_that_is_on_its_way_when_the_stop_is_asked_for(pool, server, app):
    """It is not delivered any more: nobody may be left who takes it."""
    with (
        server.client(0) as client,
        far_away(server.port, 0.0) as way,
        worker_of(f"redis://127.0.0.1:{way.port}/0", server, pool) as worker,
    ):
        worker.ready()
        way.seconds = FAR
        ids = [app.send_task("hold", [0]).id for _ in range(CLAIMED)]
        wait_until(lambda: claims_of(client), "claimed", pause=0.001)
        worker.term()
        assert worker.wait() == 0
        assert worker.count("Requeuing undeliverable") == 0
        # What had come (the signal was late) went back before what was on its way.
        come = {found[1] for found in worker.find(r"Task hold\[(\S+)\] (?:received|interrupted)")}
        back = waiting(client)
        assert sorted(back) == sorted(ids)
        assert [i for i in back if i not in come] == [i for i in ids if i not in come]
        assert 0 < commands(client)[0] <= FEW
