"""A failover of Redis under running tasks: nobody who lives is taken for dead by the new master."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from celery import Celery

from tests.support.workers import Worker, wait_until


def others_take_its_place(sentinels, old):
    """When no lease is left: none is renewed there any more."""
    with sentinels.replica.client() as client:
        wait_until(lambda: not client.keys("graceful:lease:*"), "all leases have run out")
    return sentinels.wait_failover(old)


def pause(sentinels):
    """It hangs: connections stay open, and nothing answers."""
    old = sentinels.master
    old.pause()
    return others_take_its_place(sentinels, old)


def kill(sentinels):
    old = sentinels.master
    old.kill()
    return others_take_its_place(sentinels, old)


def change(sentinels):
    """On request: the old one runs on, and takes heartbeats, until Sentinel turns to it."""
    return sentinels.failover()


# All leases run out before the heartbeats of both workers have found their way; but for an old
# master that takes writes for some ten seconds more, on which who is left there may rescue.
@pytest.mark.parametrize(("way", "ttl"), [(change, 60), (pause, 10), (kill, 10)])
def test_running_tasks_are_not_started_again(way, ttl, sentinels, tmp_path):
    options = repr(sentinels.options)
    env = {
        "BROKER_URL": sentinels.url(0),
        "RESULT_URL": sentinels.url(1),
        "GRACE": "60",
        "CONF_broker_transport_options": options,
        "CONF_result_backend_transport_options": options,
        "CONF_graceful_lease_ttl": str(ttl),
        "CONF_graceful_heartbeat_interval": "0.5",
        "CONF_graceful_rescue_interval": "0.5",
        "CONF_worker_prefetch_multiplier": "1",
    }
    with ExitStack() as stack:
        app = stack.enter_context(Celery("claims", broker=env["BROKER_URL"]))
        app.conf.broker_transport_options = sentinels.options
        workers, ids = [], []
        for pool in ("prefork", "threads"):
            worker = Worker("tests.apps.claims", pool=pool, concurrency=2, env=env)
            workers.append(stack.enter_context(worker))
            names = ("hold", "hold_plain")
            ids += [app.send_task(name, [str(tmp_path / "go")]).id for name in names]
            worker.wait_line(">> .* started", 2)
        app.close()
        sentinels.wait_until_copied()
        new = way(sentinels)
        with new.client() as client:
            server = client.info("server")["run_id"]

            def all_are_here():
                known = client.hget("graceful:epoch", "server") or ""
                about = [client.get(key) or "" for key in client.keys("graceful:worker:*")]
                return known.startswith(server) and sum(server in one for one in about) == 2

            wait_until(all_are_here, "both workers have met the new master")
            # They have looked who is dead since.
            wait_until(lambda: not client.exists("graceful:rescuer"))
            wait_until(lambda: client.exists("graceful:rescuer"))
            (tmp_path / "go").touch()
            for worker in workers:
                worker.wait_line(">> .* ended", 2)
            wait_until(lambda: not client.keys("graceful:claims:*"), "all acknowledged")
            wait_until(lambda: len(new.client(1).keys("celery-task-meta-*")) == 4, "results")
            for worker in workers:
                worker.term()
                assert worker.wait() == 0
                assert worker.count(">> .* started") == 2
                assert worker.count("Rescued|lease ran out|has lost its data") == 0
            assert client.llen("celery") == 0
            assert not client.keys("graceful:deaths:*")
            assert not client.keys("graceful:tombstone:*")
