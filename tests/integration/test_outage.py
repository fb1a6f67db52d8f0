"""What the log tells of an outage: each error with its type, its message and its place, once."""

from __future__ import annotations

import re

import pytest

from tests.servers import RedisServer
from tests.support.workers import Worker


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_an_outage_of_redis_in_the_log(pool, start_server):
    server = start_server(RedisServer)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "shop", "on", ">s3cret", "~*", "&*", "+@all")
    url = server.url().replace("//", "//shop:s3cret@")
    with Worker("tests.apps.resuming", pool=pool, env={"BROKER_URL": url, "GRACE": "6"}) as worker:
        worker.ready()
        server.kill()
        worker.wait_line("Connection to broker lost")
        worker.wait_line("The store .* does not work")
        worker.wait_line("Cannot connect", 2)
        worker.term()
        worker.wait()
        # Celery 5.5 and 5.6 show the traceback of a lost connection, not the error in the line.
        about = r"connection\.\.\. \(|does not work|Cannot connect to"
        lines = [line for line in worker.lines if re.search(about, line)]
        assert len(lines) >= 3
        assert not [line for line in lines if f"127.0.0.1:{server.port}" not in line]
        assert not [line for line in lines if "Error: " not in line]
        # One that was busy for a second before it was killed has been away twice.
        away = worker.count("MainProcess.*does not work(?!: TimeoutError)")
        assert away + worker.count("the store") <= 1
        assert "network:" not in worker.output
        assert "s3cret" not in worker.output
