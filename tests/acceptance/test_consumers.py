"""Tasks that consume by themselves: over their own channels they do as kombu does, in each pool."""

from __future__ import annotations

import os
import signal
import time

import pytest
from celery import Celery
from kombu import Connection

from celery_graceful.claims.ear import LONG, SHORT
from tests.apps.consumers import WAYS
from tests.support.workers import TIMEOUT, Worker, end_leases, wait_until

SIDE = 100


def claims(client):
    """All that is claimed: number of the claim -> message."""
    return {
        number: entry
        for key in client.keys("graceful:claims:*")
        for number, entry in client.hgetall(key).items()
    }


@pytest.mark.parametrize("pool", ["prefork", "spawn", "threads", "gevent", "solo"])
def test_what_a_task_consumes_is_its_own(pool, redis_db, tmp_path):
    """And costs nobody a claim: not the task that runs beside it, and is lost with its worker."""
    client, go = redis_db.client, tmp_path / "go"
    env = {
        "BROKER_URL": redis_db.url,
        "RESULT_URL": redis_db.backend_url,
        "GRACE": "6",
        "CONF_graceful_lease_ttl": "10",
        "CONF_graceful_heartbeat_interval": "0.5",
    }
    for url in (redis_db.url, redis_db.backend_url):
        with Connection(url) as connection, connection.SimpleQueue("side") as queue:
            for number in range(SIDE):
                queue.put(number)
    app = Celery(broker=redis_db.url, backend=redis_db.backend_url, set_as_current=False)
    with app, Worker("tests.apps.consumers", pool=pool, env=env) as worker:
        worker.ready()
        held = {}
        if pool != "solo":
            app.send_task("hold", [str(go)])
            worker.wait_line(">> .* started")
            held = claims(client)
            assert len(held) == 1
        got = []
        for way in WAYS:
            sent = [
                app.send_task("consume", [way, "side", url]) for url in (None, redis_db.backend_url)
            ]
            got += [result.get(timeout=TIMEOUT) for result in sent]
            wait_until(lambda: claims(client) == held, "nothing else is claimed")
        assert sorted(got) == sorted([*range(len(WAYS))] * 2)
        for url in (redis_db.url, redis_db.backend_url):
            with Connection(url) as connection, connection.SimpleQueue("side") as queue:
                assert queue.qsize() == SIDE - len(WAYS)
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        end_leases(client, worker)
        if held:
            with Worker("tests.apps.consumers", env=env) as other:
                go.touch()
                other.wait_line(">> .* ended")
                wait_until(lambda: not claims(client), "acknowledged")
    assert not claims(client)
    assert not client.exists("unacked")


def waits_for_long(client):
    """Somebody waits for a bell, and has done so for longer than without ears."""
    waiting = [each for each in client.client_list() if each["cmd"] == "brpop"]
    return any(int(each["idle"]) > SHORT for each in waiting)


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_one_that_waits_for_long_hears_of_a_new_queue_and_of_plain_producers(pool, redis_db):
    """An idle worker waits for 20 s, for the bells that there were."""
    env = {"BROKER_URL": redis_db.url, "RESULT_URL": redis_db.backend_url}
    with (
        Worker("tests.apps.claims", pool=pool, env=env, alone=False) as worker,
        Celery("plain", broker=redis_db.url, backend=redis_db.backend_url) as plain,
    ):
        worker.ready()
        wait_until(lambda: redis_db.client.keys("graceful:ear:*"), "it listens")
        (ear,) = redis_db.client.keys("graceful:ear:*")
        wait_until(lambda: waits_for_long(redis_db.client), "its wait is a long one")
        began = time.monotonic()
        plain.send_task("hold", (0,)).get(timeout=TIMEOUT)
        assert time.monotonic() - began < LONG * 0.9
        wait_until(lambda: waits_for_long(redis_db.client), "so is this one")
        plain.control.add_consumer("another", reply=True, timeout=TIMEOUT, limit=1)
        began = time.monotonic()
        plain.send_task("hold", (0,), queue="another").get(timeout=TIMEOUT)
        assert time.monotonic() - began < LONG * 0.9
        wait_until(lambda: redis_db.client.keys("graceful:ear:*") not in ([], [ear]), "of both")
        worker.term()
        assert worker.wait() == 0
        assert not redis_db.client.keys("graceful:ear:*")
