"""A rolling deploy: new code sends tasks that old workers do not know."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import NotRegistered
from kombu import Queue

from celery_graceful.unusable.waiting import RETURNED, ROUND
from tests.conftest import RedisServer
from tests.support.broker import Broker, graceful_command
from tests.support.operators import command_or, document, make_app
from tests.support.raw import LOSES_EVENTS, Events
from tests.support.workers import TIMEOUT, Worker, end_leases, wait_until

APP = "tests.apps.rolling"
EVENTS = {"CONF_worker_send_task_events": "True"}


@pytest.fixture
def broker(request: pytest.FixtureRequest, make_broker: Callable[[str], Broker]) -> Broker:
    return make_broker(getattr(request, "param", "redis"))


def start(broker: Broker, pool: str = "threads", knows: bool = False, **env: str) -> Worker:
    env = {**broker.env, "GRACE": "60", **env}
    if knows:
        env["KNOWS"] = "1"
    return Worker(APP, pool=pool, env=env)


def store(broker: Broker) -> Any:
    """Where messages wait."""
    import redis

    url = broker.url if broker.name == "redis" else broker.backend_url
    return redis.Redis.from_url(url, decode_responses=True)


def waiting(broker: Broker) -> int:
    data = store(broker)
    return sum(data.hlen(key) for key in data.keys("graceful:waiting*:messages"))


def queued(broker: Broker, app: Celery) -> int:
    if broker.name == "redis":
        return int(broker.client.llen("celery"))
    with app.connection_for_read() as connection:
        return int(connection.default_channel.queue_declare("celery", passive=True).message_count)


def figures(broker: Broker) -> list[int]:
    """What the heartbeats say of tasks that are not known."""
    data = store(broker)
    beats = [data.get(key) for key in data.keys("graceful:lease:*")]
    return [json.loads(beat)["unknown_tasks"] for beat in beats if beat]


def ran_on(worker: Worker) -> list[str]:
    return [found[1] for found in worker.find(r">> \S+ ran (\S+)")]


@pytest.mark.parametrize(
    ("broker", "pool"),
    [
        ("redis", "prefork"),
        ("redis", "solo"),
        ("redis", "eventlet"),
        ("rabbitmq", "gevent"),
        ("quorum", "threads"),
    ],
    indirect=["broker"],
)
def test_what_old_code_does_not_know_waits_for_new_code(
    broker: Broker, app: Celery, pool: str
) -> None:
    later = datetime.now(timezone.utc) + timedelta(seconds=3)
    events = Events(app)
    with start(broker, pool, **EVENTS) as old:
        old.ready()
        sent = [app.send_task("new", priority=3) for _ in range(10)]
        sent += [app.send_task("new_early") for _ in range(10)]
        eta = app.send_task("new", eta=later, expires=later + timedelta(hours=1))
        marked = app.send_task("new", headers={"marked": "yes"})
        sent += [eta, marked]
        assert app.send_task("old").get(timeout=TIMEOUT)
        wait_until(lambda: waiting(broker) == len(sent), "all set aside")
        wait_until(lambda: figures(broker) == [len(sent)], "the heartbeat says so")
        assert {result.state for result in sent} == {"PENDING"}
        with start(broker, pool, knows=True, **EVENTS) as new:
            new.ready()
            old.term()
            assert old.wait() == 0
            assert {result.get(timeout=TIMEOUT) for result in sent} == {r.id for r in sent}
            assert new.count(r">> .* ran") == len(sent)
            for result in sent:
                assert new.count(f"ran {result.id} .* {3 if result in sent[:10] else 0}$") == 1
            when = re.escape(later.isoformat())
            assert new.count(f"ran {eta.id} {when} {later.year}") == 1
            assert datetime.now(timezone.utc) >= later
            assert new.count(f"headers {marked.id} yes") == 1
            new.term()
            assert new.wait() == 0
    assert old.count("is not known here") == 2, "once a name"
    assert not old.count("Traceback|unknown new|unregistered")
    seen = events.all()
    for result in sent:
        types = seen.get(result.id, [])
        assert "task-failed" not in types
        lossy = pool == "threads" and LOSES_EVENTS
        assert types.count("task-received") == 1 or (lossy and "task-received" not in types)
    assert (waiting(broker), queued(broker, app)) == (0, 0)
    assert not [k for k in store(broker).keys("graceful:waiting*") if not k.endswith(":turn")]


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
def test_killed_while_it_sets_aside(broker: Broker, app: Celery) -> None:
    """Nothing is lost, and on Redis nothing doubled; the last to leave gives back what waits."""
    with app.producer_pool.acquire(block=True) as producer:
        sent = [app.send_task("new", producer=producer).id for _ in range(1200)]
    for least in (0, 400, 800):
        with start(broker) as old:
            old.wait_line("is not known here")
            wait_until(lambda least=least: waiting(broker) > least)
            old.signal(signal.SIGKILL, group=True)
            old.wait()
            end_leases(store(broker))
    # Of acknowledgements from threads the loop of Celery before 5.7 hears once a second, so that
    # with a small window a few messages a second are all that RabbitMQ delivers.
    window = {"CONF_worker_prefetch_multiplier": "50"}
    with start(broker, knows=True, **window) as new:
        new.wait_line(">> .* ran", len(sent), timeout=2 * TIMEOUT)
        wait_until(lambda: set(ran_on(new)) == set(sent))
        wait_until(lambda: (waiting(broker), queued(broker, app)) == (0, 0))
        new.term()
        assert new.wait() == 0
    if broker.name == "redis":
        assert len(ran_on(new)) == len(sent)


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_store_that_answers_too_late_has_none_of_them_twice(
    broker: Broker, app: Celery, redis_server: RedisServer
) -> None:
    """It does what it was asked all the same, when it goes on; and is asked again."""
    with start(broker) as old:
        old.ready()
        sent = [app.send_task("new", ignore_result=True).id]
        wait_until(lambda: waiting(broker) == 1, "it has a connection, and its script")
        redis_server.pause()
        try:
            sent += [app.send_task("new", ignore_result=True).id for _ in range(5)]
            old.wait_line("does not answer|Timeout")
        finally:
            redis_server.resume()
        wait_until(lambda: waiting(broker) >= len(sent), "all set aside")
        with start(broker, knows=True) as new:
            new.wait_line(">> .* ran", len(sent))
            old.term()
            assert old.wait() == 0
            wait_until(lambda: (waiting(broker), queued(broker, app)) == (0, 0))
            new.term()
            assert new.wait() == 0
    assert sorted(ran_on(new)) == sorted(sent)


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
def test_many_are_in_nobodys_way(broker: Broker, app: Celery) -> None:
    """They take no place from what the worker knows, and come back a few at a time."""
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(1000):
            app.send_task("new", producer=producer)
        last = app.send_task("old", producer=producer)
    with start(broker, CONF_worker_prefetch_multiplier="1", GRACE="60") as old:
        last.get(timeout=TIMEOUT)
        wait_until(lambda: waiting(broker) > 850)
        began, there = time.monotonic(), queued(broker, app)
        for _ in range(5):
            app.send_task("old").get(timeout=TIMEOUT)
            back = queued(broker, app) - there
            rounds = 2 + (time.monotonic() - began) / (ROUND / 1000)
            assert back <= rounds * RETURNED
        old.term()
        assert old.wait() == 0
        assert old.took < 60
    # What it held is back when the broker has seen the end of its connection.
    wait_until(lambda: waiting(broker) + queued(broker, app) == 1000, "nothing is lost")
    if broker.name == "redis":
        assert waiting(broker) == 0, "nobody else looks after them"
    else:  # one by one, for a part of the grace
        assert queued(broker, app) > 100


@pytest.mark.parametrize("broker", ["redis", "rabbitmq", "sqla"], indirect=True)
def test_the_last_to_leave_gives_back_what_waits(broker: Broker, app: Celery) -> None:
    """Also where two leave at once; who uses the same store for another broker does not count."""
    data = store(broker)
    if broker.name != "redis":
        data.sadd("graceful:workers", "other")
        data.set("graceful:lease:other", "{}")
        data.set("graceful:worker:other", json.dumps({"broker": "another"}))
    with start(broker) as one, start(broker) as two:
        one.ready()
        two.ready()
        sent = {app.send_task("new").id for _ in range(20)}
        wait_until(lambda: waiting(broker) == len(sent), "all set aside")
        one.term()
        two.term()
        assert one.wait() == two.wait() == 0
    assert not one.count("There is no Redis")
    assert not two.count("There is no Redis")
    assert set(broker.drain_queue(app, len(sent))) == sent
    assert waiting(broker) == 0


@pytest.mark.parametrize(
    ("broker", "claims"),
    [("redis", "True"), ("redis", "False"), ("rabbitmq", "True"), ("sqla", "True")],
    indirect=["broker"],
)
def test_what_waits_is_seen_and_given_back_when_all_were_killed(
    broker: Broker, app: Celery, claims: str
) -> None:
    """As long as one lives, it looks after them; then ``status`` says so, and ``rescue`` does."""
    asks = make_app(broker.url, broker.backend_url)
    env = {"CONF_graceful_reliable_fetch": claims, "CONF_graceful_lease_ttl": str(TIMEOUT)}
    with start(broker, **env) as old:
        old.ready()
        sent = {app.send_task("new").id for _ in range(20)}

        def all_wait() -> bool:
            """They go back to the queue now and then: none does from now on."""
            old.signal(signal.SIGSTOP, group=True)
            there = (waiting(broker), figures(broker)) == (len(sent), [len(sent)])
            if not there:
                old.signal(signal.SIGCONT, group=True)
            return there

        wait_until(all_wait, "all set aside, and the heartbeat says so")
        found = document(asks, "Status", "status", status=1)
        assert found["waiting"] == {"new": len(sent)}
        assert "deploy a worker that knows their tasks" in [f["mend"] for f in found["findings"]]
        if broker.name != "sqla":  # of which nothing but this can be given back
            assert not any(one["waiting"] for one in document(asks, "Rescued", "rescue"))
        assert waiting(broker) == len(sent)
        old.signal(signal.SIGKILL, group=True)
        old.wait()
    end_leases(store(broker))
    found = document(asks, "Status", "status", status=1)
    assert found["waiting"] == {"new": len(sent)}
    said = "20 messages wait for a worker that knows new, and no worker looks after them"
    assert {"what": said, "mend": "rescue", "is_command": True} in found["findings"]
    why = document(asks, "Why", "why", min(sent), status=1)
    assert (why["state"], why["mend"]) == ("queued", "rescue")
    (looked,) = document(asks, "Rescued", "rescue", "--dry-run", status=1)
    assert (looked["waiting"], looked["returned"]) == ({"new": len(sent)}, None)
    returned: list[int] = []

    def all_returned() -> bool:
        """What the killed worker was just about to send goes back half a minute later."""
        (done,) = json.loads(command_or(asks, "rescue", "--json"))
        returned.append(done["returned"] or 0)
        return waiting(broker) == 0

    wait_until(all_returned, "all have gone back", 0.5)
    assert sum(returned) == len(sent)
    assert set(broker.drain_queue(app, len(sent))) == sent
    assert not [k for k in store(broker).keys("graceful:waiting*") if not k.endswith(":turn")]


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
def test_patience_ends_in_quarantine(broker: Broker, app: Celery) -> None:
    urls = broker.env
    with start(broker, CONF_graceful_unknown_task_patience="2.5", **EVENTS) as old:
        old.ready()
        began = time.monotonic()
        sent = [app.send_task("new", task_id=name, args=("secret",)) for name in "abc"]
        assert sent[0].state == "PENDING" or time.monotonic() - began > 2.5
        for result in sent:
            with pytest.raises((NotRegistered, Exception), match="new"):
                result.get(timeout=TIMEOUT)
            assert result.state == "FAILURE"
            old.wait_line(f"unknown new {result.id}")
        old.term()
        assert old.wait() == 0
    assert old.count("is not known here") == old.count("has waited for long enough") == 1
    assert "secret" not in old.output
    listed = graceful_command(APP, "quarantine", "list", env=urls, status=1)
    assert listed.count("in 2.5 s no worker that got it has known its task") == 3
    assert "sent again" in graceful_command(APP, "quarantine", "retry", "--all", env=urls)
    with start(broker, CONF_graceful_unknown_task_patience="300") as old:
        old.wait_line("is not known here")  # its time begins anew
        with start(broker, knows=True) as new:
            new.wait_line(">> .* ran", 3)
            wait_until(lambda: waiting(broker) == 0)


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_queue_that_stays_is_no_copy_whatever_its_exchange(broker: Broker, app: Celery) -> None:
    """Many exchanges of RabbitMQ's fan out, to queues that their workers share."""
    queues = '(Queue("celery", __import__("kombu").Exchange("news", type="fanout")),)'
    with start(broker, CONF_task_queues=queues) as old:
        old.ready()
        sent = app.send_task("new", exchange="news", routing_key="")
        old.wait_line("is not known here")
        with start(broker, knows=True, CONF_task_queues=queues):
            assert sent.get(timeout=TIMEOUT) == sent.id


def test_a_plain_worker_that_knows_it_gets_it(broker: Broker, app: Celery) -> None:
    with start(broker) as old:
        old.ready()
        sent = app.send_task("new")
        old.wait_line("is not known here")
        plain = start(broker, knows=True, PLAIN="1")
        with plain:
            plain.ready()
            assert sent.get(timeout=TIMEOUT) == sent.id


def test_celerys_way_is_a_setting(broker: Broker, app: Celery) -> None:
    with start(broker, CONF_graceful_unknown_task_patience="0") as old:
        old.ready()
        with pytest.raises((NotRegistered, Exception), match="new"):
            app.send_task("new").get(timeout=TIMEOUT)
        assert old.count("Received unregistered task of type")
    assert waiting(broker) == 0


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_without_a_store_rabbitmq_keeps_them(broker: Broker, app: Celery) -> None:
    env = {"RESULT_URL": "rpc://"}
    with start(broker, **env) as old:
        old.ready()
        sent = {app.send_task("new", priority=2).id for _ in range(5)}
        old.wait_line("is not known here")
        with start(broker, knows=True, **env) as new:
            new.ready()
            old.term()  # while it is there, it may get them as well
            assert old.wait() == 0
            new.wait_line(">> .* ran", len(sent))
            assert {found[1] for found in new.find(r">> \S+ ran (\S+) .* 2$")} == sent
            new.term()
            assert new.wait() == 0
    with start(broker, CONF_graceful_unknown_task_patience="0.5", **env) as old:
        old.ready()
        lost = app.send_task("new")
        old.wait_line(f"unknown new {lost.id}")
    with app.connection_for_read() as connection:
        quarantine = Queue("graceful.quarantine")(connection.default_channel)
        got: list[Any] = []
        wait_until(lambda: got.append(quarantine.get(no_ack=True)) or got[-1], "it is kept")
        kept = got[-1]
        assert kept.headers["id"] == lost.id
        assert "has known its task" in kept.headers["graceful_why"]
        assert kept.headers["graceful_queue"] == "celery"
