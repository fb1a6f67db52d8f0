"""Worker threads that wait for longer than poll can count."""

from __future__ import annotations

from tests.support.workers import Worker


def test_a_worker_with_a_month_of_grace_stops(redis_db):
    env = {
        "BROKER_URL": redis_db.url,
        "GRACE": "2500000",
        "CONF_graceful_rescue_interval": "86400",
        "CONF_graceful_heartbeat_interval": "3600",
        "CONF_graceful_lease_ttl": "86400",
    }
    with Worker("tests.apps.claims", env=env) as worker:
        worker.ready()
        worker.term()
        assert worker.wait() == 0
        assert worker.count("Stopped: ")
        assert not worker.count("CRITICAL|Traceback|OverflowError")
