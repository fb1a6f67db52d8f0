"""A worker is killed while it runs many tasks: what others do for each of them, they do at once."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
from contextlib import ExitStack

import pytest
from celery import Celery

from celery_graceful.store.scripts import script
from tests.support.monitor import monitored
from tests.support.workers import Worker, end_leases, wait_until

AT_ONCE = 12


@pytest.fixture
def start(redis_db):
    with ExitStack() as stack:

        def start(*args):
            env = {
                "BROKER_URL": redis_db.url,
                "RESULT_URL": redis_db.backend_url,
                "CONF_graceful_lease_ttl": "10",
                "CONF_graceful_heartbeat_interval": "0.5",
                "CONF_graceful_rescue_interval": "0.5",
            }
            return stack.enter_context(
                Worker("tests.apps.claims", pool="threads", concurrency=AT_ONCE, env=env, args=args)
            )

        yield start


def rescued(command):
    """The events of tasks that were rescued which a command brings."""
    body = re.search(r'^PUBLISH .*"body": "([^"]+)"', command)
    told = json.loads(base64.b64decode(body[1])) if body else []
    events = told if isinstance(told, list) else [told]
    return [event for event in events if event.get("type") == "task-rescued"]


@pytest.mark.parametrize("args", [(), ("-E",)], ids=["without events", "with events"])
def test_each_is_counted_and_told_and_it_is_one_step(args, start, redis_db):
    client = redis_db.client
    with Celery("claims", broker=redis_db.url, backend=redis_db.backend_url) as app:
        ids = {app.send_task("hold", (3600,)).id for _ in range(AT_ONCE)}
        dead = start()
        dead.wait_line(">> .* started", AT_ONCE)

        def noted():
            keys = client.keys("graceful:begun:*")
            return sum(client.scard(key) for key in keys) == AT_ONCE

        wait_until(noted, "what runs is noted")
        os.killpg(dead.pid, signal.SIGKILL)
        dead.wait()
        with monitored(client) as commands:
            end_leases(client, dead)
            other = start(*args)
            other.wait_line(">> .* started", AT_ONCE)
            wait_until(lambda: not client.keys("graceful:fallen"), "all is written down")
        other.kill()
    for name, most in {"deaths": 1, "history": 2, "heads": 2, "give_back": 1}.items():
        assert sum(script(name).sha in command for command in commands) <= most, name
    assert {key.rpartition(":")[2] for key in client.keys("graceful:deaths:*")} == ids
    told = [number for number, command in enumerate(commands) if rescued(command)]
    assert len(told) == len(args), "where somebody listens, once"
    for number in told:
        assert {event["uuid"] for event in rescued(commands[number])} == ids
        back = next(n for n, command in enumerate(commands) if script("give_back").sha in command)
        assert number < back, "before anybody says that they run again"
