"""What was sent to each worker: a copy is one worker's, and ends with it."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from celery import Celery
from kombu import Queue
from kombu.common import Broadcast

from tests.support.workers import Worker, wait_until

QUEUES = '(Queue("celery"), __import__("kombu.common").common.Broadcast("news"))'

POOLS = ["prefork", "threads", "gevent", "rabbitmq"]


def listeners(client):
    """Connections that have subscribed to something, to this database."""
    number = str(client.connection_pool.connection_kwargs["db"])
    return sum(c["db"] == number and c["psub"] != "0" for c in client.client_list())


@pytest.mark.parametrize("pool", POOLS)
def test_a_copy_ends_with_its_worker(pool, redis_db, request, tmp_path):
    """That of another one goes on; what waits for its time ends as well; nothing is left behind."""
    amqp = pool == "rabbitmq"
    url = request.getfixturevalue("rabbit_vhost").url if amqp else redis_db.url
    env = {
        "BROKER_URL": url,
        "RESULT_URL": redis_db.backend_url,
        "GRACE": "16",
        "CONF_graceful_hard_deadline": "3",  # much room after it: the machine may be slow
        "CONF_task_queues": QUEUES,
    }
    news, client = Broadcast("news"), redis_db.client
    options = {"queue": "news", "declare": [news.exchange]}
    with ExitStack() as stack:
        app = stack.enter_context(
            Celery(broker=url, backend=redis_db.backend_url, set_as_current=False)
        )
        app.conf.task_queues = (Queue("celery"), news)
        leaving, staying = (
            stack.enter_context(
                Worker("tests.apps.claims", pool="prefork" if amqp else pool, env=env)
            )
            for _ in range(2)
        )
        for worker in (leaving, staying):
            worker.ready()
        if not amqp:
            wait_until(lambda: listeners(client) == 4, "both listen, and to remote control")
        running = app.send_task("hold", [str(tmp_path / "go")], **options)
        app.send_task("hold", [0], countdown=600, **options)
        for worker in (leaving, staying):
            worker.wait_line(f">> .* started {running.id}")
            worker.wait_line("received", 2)
        leaving.term()
        assert leaving.wait() == 0
        assert not leaving.count("Traceback")
        (tmp_path / "go").touch()
        staying.wait_line(f">> .* ended {running.id}")
        staying.term()
        assert staying.wait() == 0
        assert not staying.count("Traceback")
        assert [worker.count(">> .* started") for worker in (leaving, staying)] == [1, 1]
        if not amqp:
            lists = [key for key in client.keys("*") if client.type(key) == "list"]
            kept = [key for key in lists if client.ttl(key) < 0]
            assert [key for key in kept if not key.startswith("graceful:bell:")] == []
            assert not client.exists("unacked", "unacked_index")


@pytest.mark.parametrize("pool", POOLS)
def test_each_copy_does_all_of_the_work(pool, redis_db, request, tmp_path):
    """None goes on from the checkpoint of another, whose task has the same id."""
    amqp = pool == "rabbitmq"
    url = request.getfixturevalue("rabbit_vhost").url if amqp else redis_db.url
    env = {
        "BROKER_URL": url,
        "RESULT_URL": redis_db.backend_url,
        "CONF_graceful_store": repr(redis_db.url),
        "CONF_task_queues": QUEUES,
    }
    news, client = Broadcast("news"), redis_db.client
    with ExitStack() as stack:
        app = stack.enter_context(
            Celery(broker=url, backend=redis_db.backend_url, set_as_current=False)
        )
        app.conf.task_queues = (Queue("celery"), news)
        first, second = (
            stack.enter_context(
                Worker(
                    "tests.apps.claims",
                    pool="prefork" if amqp else pool,
                    env=env,
                    hostname=f"{name}@test",
                ).ready()
            )
            for name in ("first", "second")
        )
        if not amqp:
            wait_until(lambda: listeners(client) == 4, "both listen, and to remote control")
        go = tmp_path / "go"
        sent = app.send_task(
            "reload", ["first@test", str(go)], queue="news", declare=[news.exchange]
        )
        first.wait_line(f">> .* done {sent.id}")
        go.touch()
        second.wait_line(f">> .* ended {sent.id}")
        (tmp_path / "go-end").touch()
        first.wait_line(f">> .* ended {sent.id}")
        for worker in (first, second):
            worker.term()
            assert worker.wait() == 0
            assert [worker.count(f">> .* {what}") for what in ("reloaded", "row")] == [1, 3]
            assert not worker.count("was delivered again")
        assert not client.keys("graceful:checkpoint:*")
