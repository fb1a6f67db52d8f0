"""What a thread of the main process holds at a fork keeps no child waiting."""

from __future__ import annotations

from celery import Celery

from tests.conftest import RedisDB
from tests.support.workers import Worker


def test_cached_properties_of_kombu(redis_db: RedisDB) -> None:
    env = {"BROKER_URL": redis_db.url}
    with (
        Celery("test", broker=redis_db.url, set_as_current=False) as app,
        Worker("tests.apps.inheriting", concurrency=1, env=env).ready() as worker,
    ):
        app.send_task("reads", kwargs={"kills": True})
        worker.wait_line(">> .* read made by the child")
        worker.wait_line("SIGKILL")
        app.send_task("reads")  # in a child that was forked later
        worker.wait_line(">> .* read made by the child", count=2)
        worker.term()
        assert worker.wait() == 0
