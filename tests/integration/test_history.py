"""The history, as it is written."""

from __future__ import annotations

import json

from celery import Celery

from celery_graceful import Graceful
from celery_graceful.history.entry import FLEET, Entry, What
from celery_graceful.history.journal import IN_ONE_STEP, write
from celery_graceful.settings import Settings
from celery_graceful.store.app_stores import broker_store
from tests.conftest import RedisDB
from tests.support.monitor import monitored


def test_many_are_written_in_steps(redis_db: RedisDB) -> None:
    """A worker that was killed had thousands: Redis does nothing else during a script."""
    app = Celery("history", broker=redis_db.url, set_as_current=False)
    Graceful(app)
    store, many = broker_store(app), 2 * IN_ONE_STEP + 1
    assert store is not None
    entries = [Entry(What.RESCUED, f"id-{number}") for number in range(many)]
    with monitored(redis_db.client) as commands:
        write(store, Settings(history_length=2 * many), entries)
    assert sum(command.startswith("EVALSHA") for command in commands) == 3
    written = redis_db.client.xrange(FLEET)
    assert [json.loads(fields["m"])["id"] for _, fields in written] == [one.id for one in entries]
    assert redis_db.client.exists(*(f"{FLEET}:{one.id}" for one in entries)) == many
