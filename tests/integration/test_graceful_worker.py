"""The fixture ``graceful_worker``, on each pool."""

from __future__ import annotations

import pytest

from celery_graceful.testing import Workers
from tests.apps import pooled
from tests.support.installed import require_modules
from tests.support.workers import TIMEOUT


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "eventlet", "solo"])
def test_a_worker_of_each_pool_works_and_stops(pool: str, graceful_worker: Workers) -> None:
    """What gevent and eventlet patch must not be imported before they do."""
    if pool in ("gevent", "eventlet"):
        require_modules(pool)
    worker = graceful_worker(pooled.app, pool=pool, concurrency=2)
    results = [pooled.plain.delay(number) for number in range(5)]
    assert [result.get(timeout=TIMEOUT) for result in results] == [*range(5)]
    result = pooled.export.delay(30)
    worker.wait_for("row 2")
    assert worker.stop().interrupted == 1

    last = graceful_worker(pooled.app, pool=pool, concurrency=2)
    assert result.get(timeout=TIMEOUT) == 30
    assert not any(line.endswith("row 1") for line in last.lines)
    last.stop()
    graceful_worker.assert_nothing_left()
