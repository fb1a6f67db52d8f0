"""Redis transports derived from kombu's claim; others are named at start, and do as they do."""

from __future__ import annotations

import pytest
from celery import Celery

from tests.acceptance.test_claims import kill_connections
from tests.support import transports
from tests.support.workers import TIMEOUT, Worker, wait_until

#: Much room after the hard deadline: the machine may be slow.
GRACE = {"GRACE": "60", "CONF_graceful_hard_deadline": "3", "LAST_RESORT": "20"}

OFF = "Reliable fetch is off for the transport"


@pytest.fixture
def start(redis_db):
    """Starts a worker over a transport, and makes an app that sends over it."""
    begun = []

    def start(scheme, pool="prefork", **env):
        url = redis_db.url.replace("redis", scheme, 1)
        env = {"BROKER_URL": url, "RESULT_URL": redis_db.backend_url, **GRACE, **env}
        app = Celery(broker=url, backend=redis_db.backend_url, set_as_current=False)
        begun[:] = [app, Worker("tests.apps.transports", pool=pool, env=env)]
        return app, begun[1].ready()

    assert transports.KINDS  # their names are known in this process too
    yield start
    app, worker = begun
    worker.__exit__(None, None, None)
    app.close()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("scheme", ["derived", "ownchannel"])
def test_what_is_derived_from_kombus_claims(scheme, pool, start, redis_db, tmp_path):
    """And what its author wrote is asked as before."""
    app, worker = start(scheme, pool)
    own = scheme == "ownchannel"
    done = app.send_task("hold", [0])
    assert done.get(timeout=TIMEOUT) == done.id
    wait_until(lambda: not redis_db.client.keys("graceful:claims:*"), "acknowledged")
    assert worker.count(">> .* appended") == worker.count(">> .* acknowledged") == own
    running = [app.send_task("hold", [str(tmp_path / "go")]) for _ in range(2)]
    worker.wait_line(">> .* started", 3)
    (key,) = redis_db.client.keys("graceful:claims:*")
    assert redis_db.client.hlen(key) == 2
    assert all(('"shop": "sent"' in text) == own for text in redis_db.client.hvals(key))
    for _ in range(3):
        wait_until(lambda: kill_connections(redis_db), "connected again")
    worker.term()
    assert worker.wait() == 0
    for result in running:
        assert worker.count(f">> .* started {result.id}") == 1
    assert redis_db.client.llen("celery") == 2
    assert not redis_db.client.keys("graceful:claims:*")
    assert not worker.count(OFF)


@pytest.mark.parametrize(
    ("scheme", "why", "options"),
    [
        ("ownfetch", r"OwnFetch: its channel fetches in a way of its own", {}),
        ("foreign", r"Foreign: it is not kombu's Redis transport, nor derived from it", {}),
        ("redis", r"the transport option ack_emulation is off", {"ack_emulation": False}),
    ],
)
def test_what_cannot_claim_is_named(scheme, why, options, start, redis_db, tmp_path):
    """Once; and what it holds goes back all the same at a stop in good order."""
    # The loop of a transport that has no event loop waits for room in a pool of processes.
    pool = "threads" if scheme == "foreign" else "prefork"
    app, worker = start(scheme, pool, CONF_broker_transport_options=repr(options))
    assert worker.count(f"{OFF} .*{why}") == worker.count(OFF) == 1
    running = [app.send_task("hold", [str(tmp_path / "go")]) for _ in range(4)]
    worker.wait_line(">> .* started", 2)
    worker.wait_line("received", 4)
    assert not redis_db.client.keys("graceful:claims:*")
    worker.term()
    assert worker.wait() == 0
    assert worker.count(">> .* started") == 2
    assert redis_db.client.llen("celery") == len(running)
    assert not worker.count("Traceback")
