"""What operators read and delete, in this process."""

from __future__ import annotations

import pytest
from celery import Celery

from celery_graceful import Graceful
from celery_graceful.checkpoints.checkpoint import key_of
from celery_graceful.operations import Operations, queues
from celery_graceful.operations.queues import Unsure
from celery_graceful.store.app_stores import broker_store
from tests.conftest import RedisDB


@pytest.fixture
def app(redis_db: RedisDB) -> Celery:
    app = Celery("operations", broker=redis_db.url, set_as_current=False)
    Graceful(app)

    @app.task(name="shop:export", shared=False)
    def export() -> None: ...

    return app


def test_a_checkpoint_is_that_of_its_task_alone(app: Celery, redis_db: RedisDB) -> None:
    """Names and ids may have colons in them; one id may end like another."""
    tasks = [("shop.bill", "1"), ("shop.bill", "invoice:1"), ("shop:export", "1")]
    for task in tasks:
        redis_db.client.hset(key_of(*task), "interruptions", len(task[1]))
    operations = Operations(app)
    assert sorted((one.task, one.id) for one in operations.checkpoints()) == tasks
    found = operations.checkpoint("invoice:1")
    assert found is not None
    assert (found.task, found.id, found.interruptions) == ("shop.bill", "invoice:1", 9)
    named = operations.checkpoint("1", "shop:export")
    assert named is not None
    assert (named.task, named.id) == ("shop:export", "1")
    assert operations.clear_checkpoint("1", "shop:export")
    assert operations.clear_checkpoint("1")
    assert not operations.clear_checkpoint("1")
    assert not operations.clear_checkpoint("export:1")
    assert [(one.task, one.id) for one in operations.checkpoints()] == [tasks[1]]


def test_a_search_through_many_queues_ends(
    app: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_db.client.rpush("other", "{}")
    store = broker_store(app)
    assert store is not None
    assert queues.find_in_queues(app, store, "1") is None
    monkeypatch.setattr(queues, "PATIENCE", -1.0)
    with pytest.raises(Unsure, match="too many queues"):
        queues.find_in_queues(app, store, "1")
