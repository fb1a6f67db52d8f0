"""A plain app in the same process, with the same broker: `kombu.pools` keeps them apart."""

from __future__ import annotations

import pytest
from celery import Celery
from kombu import pools
from redis.credentials import UsernamePasswordCredentialProvider

from celery_graceful import Graceful
from tests.conftest import RedisDB


def make(redis_db: RedisDB, *, graceful: bool) -> Celery:
    app = Celery("pools", broker=redis_db.url, set_as_current=False)
    if graceful:
        Graceful(app)
    return app


@pytest.mark.parametrize("order", [(False, True), (True, False)], ids=["plain first", "ours first"])
def test_each_sends_over_its_own(redis_db: RedisDB, order: tuple[bool, bool]) -> None:
    for graceful in order:
        redis_db.client.delete("graceful:bell:celery")
        with make(redis_db, graceful=graceful) as app:
            app.send_task("any")
            rings = redis_db.client.exists("graceful:bell:celery")
            assert bool(rings) == graceful, "whoever waits for the bell hears of it at once"


def test_apps_alike_share_one(redis_db: RedisDB) -> None:
    for graceful in (False, True):
        one, two = (make(redis_db, graceful=graceful) for _ in range(2))
        found = {id(pools.connections[app.connection_for_write()]) for app in (one, two)}
        assert len(found) == 1


def test_a_channel_sends_by_one_client(redis_db: RedisDB) -> None:
    """Until its connections have to be others."""
    with make(redis_db, graceful=True) as app, app.connection_for_write() as connection:
        channel = connection.channel()
        with channel.conn_or_acquire() as one, channel.conn_or_acquire() as two:
            assert one is two
        channel._disconnect_pools()
        with channel.conn_or_acquire() as three:
            assert three is not one
            assert three.connection_pool is channel.pool
        channel.pool.connection_kwargs["credential_provider"] = UsernamePasswordCredentialProvider()
        with channel.conn_or_acquire() as four, channel.conn_or_acquire() as five:
            assert four is not five, "its credentials may change"
