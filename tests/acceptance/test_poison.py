"""Tasks whose process dies: counted, and in the end kept away from the workers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from celery import Celery, chord, signature

from celery_graceful import PoisonedTask
from celery_graceful.poison import quarantine
from celery_graceful.store.app_stores import find_workers_store
from tests.support.broker import Broker
from tests.support.raw import Events
from tests.support.workers import TIMEOUT, Worker

APP = "tests.apps.poison"


def start(
    broker: Broker, pool: str = "prefork", concurrency: int = 1, *args: str, **env: str
) -> Worker:
    env = {
        **broker.env,
        "GRACE": "60",
        "CONF_worker_prefetch_multiplier": "1",
        "CONF_worker_lost_wait": "0.1",
        "CONF_worker_send_task_events": "True",
        **env,
    }
    return Worker(APP, pool=pool, concurrency=concurrency, env=env, args=args)


def task(app: Celery, name: str, *args: object, **options: object) -> object:
    return signature(f"{APP}.{name}", args, app=app, **options)


def quarantined(app: Celery) -> dict[str, quarantine.Kept]:
    store = find_workers_store(app)
    assert store is not None
    return {kept.id: kept for kept in quarantine.entries(store)}


@pytest.fixture(params=["redis", "rabbitmq", "quorum"])
def broker(request: pytest.FixtureRequest, make_broker: Callable[[str], Broker]) -> Broker:
    return make_broker(request.param)


def test_children_that_die(broker: Broker, app: Celery) -> None:
    """Each way to die, one after the other on one worker; with all that is told of it."""
    ways = ["kill", "exit", "segfault", "system_exit"]
    events = Events(app)
    with start(broker, concurrency=4) as worker:
        worker.ready()
        sent = [
            task(app, "dying", how).apply_async(task_id=how, link_error=task(app, "errback"))
            for how in ways
        ]
        body = chord([task(app, "part"), task(app, "dying", "exit")])(task(app, "total"))
        early = task(app, "dying_early").apply_async()
        for result in sent:
            with pytest.raises(PoisonedTask, match=r"is in quarantine: .* died 3 times"):
                result.get(timeout=TIMEOUT)
        with pytest.raises(Exception, match="is in quarantine"):
            body.get(timeout=TIMEOUT)
        assert body.parent.children[0].get(timeout=TIMEOUT) == 1
        with pytest.raises(Exception, match="exited prematurely"):
            early.get(timeout=TIMEOUT)
        for how in ways:
            worker.wait_line(f"quarantined {how} {APP}.dying 3 .*True")
        worker.wait_line(r">> .* errback", len(ways))
        assert task(app, "part").apply_async().get(timeout=TIMEOUT) == 1
        for how in ways:
            assert worker.count(f"started {how}") == 3
            said = worker.find(rf"dying\[{how}\].* death (\d of 3).* (goes .*(?:queue|quarantine))")
            assert [one.groups() for one in said] == [
                ("1 of 3", "goes back to its queue"),
                ("2 of 3", "goes back to its queue"),
                ("3 of 3", "goes to quarantine"),
            ]
        worker.term()
        assert worker.wait() == 0
        assert worker.count(">> .* errback") == len(ways)
        assert broker.held() == 0
        assert broker.drain_queue(app) == [], body.parent
    kept = quarantined(app)
    assert set(ways) < kept.keys()
    assert early.id not in kept
    assert {kept[how].task for how in ways} == {f"{APP}.dying"}
    for how in ways:  # each was sent over a connection of its own
        events.wait(how, "task-failed")
    seen = events.all()
    for how in ways:
        assert seen[how].count("task-failed") == 1
