"""What a worker finds out by itself of batches that were cancelled."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from unittest.mock import Mock

from celery import Celery

from celery_graceful import Batch, Graceful
from celery_graceful.batches.cancellations import known_of
from celery_graceful.batches.member_part import Part
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import CANCELLATIONS
from celery_graceful.worker.cancelling import Cancelling
from tests.conftest import RedisDB
from tests.support.deliveries import bench
from tests.support.workers import TIMEOUT


def test_what_is_found_cancelled_is_news_to_all_processes(redis_db: RedisDB) -> None:
    """As what the worker is told: else what begins just then goes by what it knew before."""
    app = Celery("cancelling", broker=redis_db.url, set_as_current=False)
    Graceful(app)
    batch = Batch(app=app).apply_async([app.signature("one")])
    batch.cancel()
    rung = threading.Event()
    worker = SimpleNamespace(app=app, timer=Mock())
    with bench() as b:
        cancelling = Cancelling(worker, Mock(open_requests=list), b.board, rung.set)
        before = worker_state.flag.value[CANCELLATIONS]
        cancelling.came(Part(batch.id, "member", "member", False))
        assert rung.wait(TIMEOUT)
        cancelling.on_loop()
        assert worker_state.flag.value[CANCELLATIONS] == before + 1
        assert known_of(app).age(batch.id) == float("inf")
        cancelling.end(TIMEOUT)
    app.close()
