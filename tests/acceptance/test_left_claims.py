"""What a worker could not give back before its end is said, and comes back all the same."""

from __future__ import annotations

import signal

from celery import Celery

from celery_graceful import Graceful
from celery_graceful.operations import Operations
from tests.servers import RedisServer
from tests.support.workers import Worker, wait_until

#: By the time that a worker has ended here, its lease has nearly run out.
ENV = {
    "GRACE": "60",
    "CONF_graceful_hard_deadline": "5",
    "CONF_graceful_lease_ttl": "4",
    "CONF_graceful_heartbeat_interval": "0.5",
}


def test_a_stop_that_leaves_claims_says_so(start_server):
    """Redis hangs during the stop, and nothing runs: what is prefetched cannot go back."""
    server = start_server(RedisServer)
    env = {"BROKER_URL": server.url(0), "RESULT_URL": server.url(1), **ENV}
    with Celery("claims", broker=server.url(0)) as app, server.client(0) as client:
        Graceful(app)
        for _ in range(3):
            app.send_task("nap", (0,), countdown=3600)
        with Worker("tests.apps.claims", env=env) as worker:
            worker.ready()
            worker.wait_line("Task nap.* received", count=3)
            server.pause()
            worker.term()
            status = worker.wait()
            assert worker.count("Up to 3 messages are still claimed by .*they are not lost") == 1
            assert status == 1
        server.resume()
        with Worker("tests.apps.claims", env=env, args=("-Q", "other")) as other:
            other.wait_line("Rescued what .* held: 3")
            wait_until(lambda: client.llen("celery") == 3)


def test_what_a_stop_could_not_give_back_has_killed_nobody(start_server):
    """Redis hangs after the worker was told to stop: its task is given up, and stays claimed."""
    server = start_server(RedisServer)
    env = {"BROKER_URL": server.url(0), "RESULT_URL": server.url(1), **ENV}
    with Celery("claims", broker=server.url(0)) as app, server.client(0) as client:
        Graceful(app)
        with Worker("tests.apps.claims", env={**env, "GRACE": "60"}) as worker:
            worker.ready()
            app.send_task("hold", (3600,))
            worker.wait_line("started")
            (about,) = client.keys("graceful:worker:*")
            wait_until(lambda: client.keys("graceful:begun:*"))
            worker.term()
            wait_until(lambda: '"stops": true' in (client.get(about) or ""))
            server.pause()
            worker.signal(signal.SIGQUIT)  # the hard deadline
            assert worker.wait() == 1
            assert worker.count("Hard deadline: giving up hold") == 1
        server.resume()
        with Worker("tests.apps.claims", env=env, args=("-Q", "other")) as other:
            other.wait_line(
                "Rescued what .* held: 1, .*; it was stopping, and did not get to give that back"
            )
            assert not other.count(", death 1 of")
            said = "did not get to give back what was held there"
            wait_until(lambda: said in str(Operations(app).status().findings))
