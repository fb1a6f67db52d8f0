"""A worker whose claims are refused says so, and why, and goes on when they are not any more."""

from __future__ import annotations

import pytest
from celery import Celery

from tests.servers import RedisServer
from tests.support.workers import TIMEOUT, Worker, wait_until

#: All that a worker needs but for what it registers with.
KINDS = ("workers", "claims:*", "bell:*", "wake:*", "ear:*")
ALL_BUT = ["~celery*", "~_kombu*", *(f"~graceful:{kind}" for kind in KINDS)]

IDLE = "This worker fetches nothing"


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_said_once_with_the_reason(pool, start_server, redis_db):
    server = start_server(RedisServer)
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "shop", "on", ">secret", "~*", "&*", "+@all")
        url = server.url().replace("://", "://shop:secret@")
        env = {
            "BROKER_URL": url,
            "RESULT_URL": redis_db.backend_url,
            "GRACE": "60",
            "CONF_graceful_lease_ttl": "12",  # it says so after that, and not before
            "CONF_graceful_heartbeat_interval": "0.2",
        }
        app = Celery(broker=url, backend=redis_db.backend_url, set_as_current=False)
        with app, Worker("tests.apps.claims", pool=pool, env=env) as worker:
            worker.ready()
            assert app.send_task("hold", [0]).get(timeout=TIMEOUT)

            # Somebody clears away what he does not know: it registers again, and nobody hears.
            admin.delete("graceful:workers")
            assert app.send_task("hold", [0]).get(timeout=TIMEOUT)
            wait_until(lambda: admin.smembers("graceful:workers"), "registered again")
            assert not worker.count(IDLE)

            admin.execute_command("ACL", "SETUSER", "shop", "resetkeys", *ALL_BUT)
            admin.delete("graceful:workers")
            waiting = app.send_task("hold", [0])
            worker.wait_line(rf"ERROR.*{IDLE}: for \d+ s .*graceful:workers.*register.*permission")
            assert not worker.count(f"started {waiting.id}")
            wait_until(lambda: admin.llen("celery") == 1, "nobody has it")

            admin.execute_command("ACL", "SETUSER", "shop", "~*")
            assert waiting.get(timeout=TIMEOUT) == waiting.id
            worker.term()
            assert worker.wait() == 0
            assert worker.count(IDLE) == 1
