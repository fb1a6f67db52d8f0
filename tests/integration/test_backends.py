"""Result backends that others bring along."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, chord
from celery.backends.redis import RedisBackend

from celery_graceful import Graceful
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.model import State
from celery_graceful.store.app_stores import find_store
from tests.conftest import RedisDB


class OthersBackend(RedisBackend):
    """One of somebody else."""


def others(**kwargs: Any) -> OthersBackend:
    """Makes one, as an entry point of ``celery.result_backends`` may (celery-redis-sync)."""
    return OthersBackend(**kwargs)


@pytest.mark.parametrize("tracks", [False, True])
def test_one_that_a_function_makes(redis_db: RedisDB, tracks: bool) -> None:
    app = Celery("others", broker=redis_db.url, set_as_current=False)
    app.loader.override_backends = {"redis": f"{__name__}:others"}
    app.conf.update(result_backend=redis_db.backend_url, graceful_track_chords=tracks)
    Graceful(app)

    @app.task(name="add", shared=False)
    def add(*numbers: int) -> int:
        return sum(numbers)

    assert isinstance(app.backend, OthersBackend)
    app.backend.store_result("1", 3, "SUCCESS")
    assert app.AsyncResult("1").get() == 3
    result = chord([add.s(1, 2), add.s(3, 4)], add.si(5))()
    ledger = BatchLedger(find_store(app))  # type: ignore[arg-type]
    assert (ledger.state(result.parent.id) is State.SENT) is tracks
