"""Callbacks that others have left in an outbox, where several apps share the store."""

from __future__ import annotations

import pytest
from celery import Celery

from celery_graceful import Batch, Graceful
from celery_graceful.batches import outbox
from celery_graceful.batches.outbox import Outbox
from celery_graceful.store.app_stores import find_store
from tests.conftest import RedisDB


def nothing(*args: object) -> None:
    """The body of tasks that are not run."""


def make_app(name: str, broker: str, store: str, *tasks: str) -> Celery:
    app = Celery(name, broker=broker, set_as_current=False)
    app.conf.update(task_default_queue=f"of-{name}", graceful_store=store)
    Graceful(app)
    for task in tasks:
        app.task(name=task, shared=False)(nothing)
    return app


@pytest.fixture
def left(redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch) -> Celery:
    """An app whose producer made a callback due, and died before it was sent."""
    monkeypatch.setattr(outbox, "LEFT", 0.0)
    app = make_app("one", redis_db.url, redis_db.url, "told")
    with monkeypatch.context() as patch:
        patch.setattr("celery_graceful.batches.batch.publish_all", lambda app, due: None)
        Batch(on_complete=app.tasks["told"].s(), app=app).apply_async()
    return app


def sweep(app: Celery) -> None:
    store = find_store(app)
    assert store is not None
    Outbox(app, lambda: None)._sweep(store)


def queued(db: RedisDB, queue: str) -> int:
    return int(db.client.llen(queue))  # type: ignore[arg-type]


def test_an_app_that_does_not_know_the_task_leaves_it(
    left: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would send it by its own routes. Not for ever: nobody may know it."""
    other = make_app("other", redis_db.url, redis_db.url, "something else")
    sweep(other)
    assert queued(redis_db, "of-other") == 0
    sweep(left)
    assert queued(redis_db, "of-one") == 1


def test_nobody_knows_it(left: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "STRANGE", 0.0)
    sweep(make_app("one", redis_db.url, redis_db.url))
    assert queued(redis_db, "of-one") == 1


def test_a_worker_of_another_broker_leaves_it(left: Celery, redis_db: RedisDB) -> None:
    other = make_app("one", redis_db.backend_url, redis_db.url, "told")
    sweep(other)
    with other.connection_for_read() as connection:
        assert connection.default_channel.client.llen("of-one") == 0
    sweep(left)
    assert queued(redis_db, "of-one") == 1
