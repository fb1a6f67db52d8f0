"""What was sent to each worker: a copy is one worker's, and ends with it."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial

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


@contextmanager
def listening(pool, redis_db, request, *names, **env):
    """What sends to each worker that listens, and workers of these names that do."""
    amqp = pool == "rabbitmq"
    url = request.getfixturevalue("rabbit_vhost").url if amqp else redis_db.url
    env = {
        "BROKER_URL": url,
        "RESULT_URL": redis_db.backend_url,
        "CONF_task_queues": QUEUES,
        **env,
    }
    news = Broadcast("news")
    with ExitStack() as stack:
        app = stack.enter_context(
            Celery(broker=url, backend=redis_db.backend_url, set_as_current=False)
        )
        app.conf.task_queues = (Queue("celery"), news)
        workers = [
            stack.enter_context(
                Worker(
                    "tests.apps.claims",
                    pool="prefork" if amqp else pool,
                    env=env,
                    hostname=f"{name}@test",
                )
            )
            for name in names
        ]
        for worker in workers:
            worker.ready()
        if not amqp:
            heard = 2 * len(workers)
            wait_until(
                lambda: listeners(redis_db.client) == heard, "all listen, and to remote control"
            )
        send = partial(app.send_task, queue="news", declare=[news.exchange])
        yield send, *workers


@pytest.mark.parametrize("pool", POOLS)
def test_a_copy_ends_with_its_worker(pool, redis_db, request, tmp_path):
    """That of another one goes on; what waits for its time ends as well; nothing is left behind."""
    client = redis_db.client
    env = {
        "GRACE": "16",
        "CONF_graceful_hard_deadline": "3",  # much room after it: the machine may be slow
    }
    with listening(pool, redis_db, request, "leaving", "staying", **env) as (send, *workers):
        leaving, staying = workers
        running = send("hold", [str(tmp_path / "go")])
        send("hold", [0], countdown=600)
        for worker in workers:
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
        assert [worker.count(">> .* started") for worker in workers] == [1, 1]
        if pool != "rabbitmq":
            lists = [key for key in client.keys("*") if client.type(key) == "list"]
            kept = [key for key in lists if client.ttl(key) < 0]
            assert [key for key in kept if not key.startswith("graceful:bell:")] == []
            assert not client.exists("unacked", "unacked_index")


@pytest.mark.parametrize("pool", POOLS)
def test_each_copy_does_all_of_the_work(pool, redis_db, request, tmp_path):
    """None goes on from the checkpoint of another, whose task has the same id."""
    go, env = tmp_path / "go", {"CONF_graceful_store": repr(redis_db.url)}
    with listening(pool, redis_db, request, "first", "second", **env) as (send, first, second):
        sent = send("reload", ["first@test", str(go)])
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
        assert not redis_db.client.keys("graceful:checkpoint:*")
