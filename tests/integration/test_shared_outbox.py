"""Callbacks that others have left in an outbox, or send meanwhile."""

from __future__ import annotations

import threading

import pytest
from celery import Celery, chord, signals

from celery_graceful import Batch, Graceful
from celery_graceful.batches import callback_publishing, ledger, outbox
from celery_graceful.batches.callback_publishing import publish_due
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.outbox import Outbox
from celery_graceful.store.app_stores import find_store
from tests.conftest import RedisDB
from tests.support.workers import TIMEOUT, wait_until


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


def test_who_sends_a_large_one_is_left_alone(
    redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For as long as it takes; else each worker of a fleet would send all of it, too."""
    monkeypatch.setattr(callback_publishing, "LEFT", 0.8)  # four times as often it says so
    monkeypatch.setattr(ledger, "LEFT", TIMEOUT)
    monkeypatch.setattr(outbox, "LEFT", 0.0)
    app = make_app("one", redis_db.url, redis_db.url, "told")
    app.conf.result_backend = redis_db.backend_url
    parts, body = [app.tasks["told"].si() for _ in range(3)], app.tasks["told"].si()
    with monkeypatch.context() as patch:
        patch.setattr("celery_graceful.batches.batch.publish_all", lambda app, due: None)
        batch = Batch(on_complete=chord(parts, body, app=app), app=app).apply_async()
    store = find_store(app)
    assert store is not None
    (due,) = BatchLedger(store).outbox()
    has_begun, goes_on = threading.Event(), threading.Event()

    def is_slow(**_: object) -> None:
        if threading.current_thread() is slow:
            has_begun.set()
            assert goes_on.wait(TIMEOUT)

    slow = threading.Thread(target=publish_due, args=[app, store, due], daemon=True)
    signals.after_task_publish.connect(is_slow)
    slow.start()
    assert has_begun.wait(TIMEOUT), "else who looks may be the first"
    heard: set[str] = set()

    def is_heard() -> bool:
        sweep(app)
        sends = redis_db.client.hget(f"graceful:batch:{batch.id}", f"publishing:{due.name}")
        heard.add(str(sends))
        return len(heard) > 5

    try:
        wait_until(is_heard, "who sends says so again and again")
        assert queued(redis_db, "of-one") <= 1
    finally:
        goes_on.set()
        slow.join(TIMEOUT)
    assert not slow.is_alive()
    assert queued(redis_db, "of-one") == 3
    assert BatchLedger(store).outbox() == []


def test_one_of_several_that_look_sends_it(
    redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app("one", redis_db.url, redis_db.backend_url, "told")
    with monkeypatch.context() as patch:
        patch.setattr("celery_graceful.batches.batch.publish_all", lambda app, due: None)
        Batch(on_complete=app.tasks["told"].s(), app=app).apply_async()
    store = find_store(app)
    assert store is not None
    (due,) = BatchLedger(store).outbox()
    assert BatchLedger(store).begin_publishing(due)
    assert not publish_due(app, store, due)
    monkeypatch.setattr(ledger, "LEFT", 0.0)
    assert publish_due(app, store, due)
    assert queued(redis_db, "of-one") == 1
    assert not BatchLedger(store).begin_publishing(due)
