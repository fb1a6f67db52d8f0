"""Tasks that do what has a say in how their run ends, on workers that stop."""

from __future__ import annotations

import signal

import pytest

from tests.conftest import RedisDB
from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker, wait_until

APP = "tests.apps.within"
#: Seconds: nothing here waits for a deadline.
GRACE = 60.0

#: Much time between the deadlines, where a task has something to do after the soft one.
ROOM = {
    "CONF_graceful_grace_period": "60.0",
    "CONF_graceful_soft_deadline": "1.5",
    "CONF_graceful_hard_deadline": "50.0",
}

#: Tasks that apply others, and look at no result.
APPLYING = {
    f"{inner} by {how}": ("outer", inner, how)
    for inner in ("cooperative", "limited", "fenced", "watched")
    for how in ("apply", "delay")
}

#: Those whose end is told while what takes their place is sent.
SENDING = {
    "again": ("again", False),
    "again in a block": ("again", True),
    "again later": ("again_later",),
    "replaced": ("replaced", False),
    "replaced in a block": ("replaced", True),
    "replaced late": ("replaced_late",),
    "plain again": ("plain_again",),
    "plain replaced": ("plain_replaced",),
}


def start(pool: str, broker: Broker, concurrency: int = 1, **env: str) -> Worker:
    env.update(**broker.env, GRACE=str(GRACE))
    return Worker(APP, pool=pool, concurrency=concurrency, env=env)


@pytest.fixture
def broker(redis_db: RedisDB) -> Broker:
    return Broker("redis", redis_db.url, redis_db.backend_url, redis_db.client)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_stops_with_those_that_it_applies(pool: str, broker: Broker) -> None:
    plain = {f"plain, {inner}": ("plain_outer", inner, "apply") for inner in ("limited", "watched")}
    sent = {**APPLYING, **plain}
    worker = start(pool, broker, len(sent), CONF_task_always_eager="True", **ROOM)
    with broker.app() as app, worker:
        worker.ready()
        for task_id, (name, *args) in sent.items():
            app.send_task(f"{APP}.{name}", args, task_id=task_id)
        for task_id in sent:
            worker.wait_line(f">> .* began {task_id}$")
        worker.term()
        assert worker.wait() == 0
        states = {task_id: app.AsyncResult(task_id).state for task_id in sent}
        expected = dict.fromkeys(APPLYING, "INTERRUPTED") | dict.fromkeys(plain, "FAILURE")
        assert states == expected
        assert sorted(broker.drain_queue(app)) == sorted(APPLYING)
        for task_id in sent:
            assert worker.count(f">> .* began {task_id}$") == 1
        for task_id in plain:
            assert worker.count(f">> .* told {task_id}$") == 1
        assert worker.count("NOT REACHED") == 0
        assert worker.count(" 0 given up") == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_is_sent_in_the_place_of_a_task_comes_alone(pool: str, broker: Broker) -> None:
    with broker.app() as app:
        # Before it starts: all of them are ahead of what they send, which finds no place.
        for task_id, (name, *args) in SENDING.items():
            app.send_task(f"{APP}.{name}", args, task_id=task_id)
        with start(pool, broker, len(SENDING), **ROOM) as worker:
            for task_id in SENDING:
                worker.wait_line(f">> .* sent {task_id}$")
            worker.term()
            assert worker.wait() == 0
            states = {task_id: app.AsyncResult(task_id).state for task_id in SENDING}
            again = {task_id for task_id in SENDING if "again" in task_id}
            assert {task_id for task_id, state in states.items() if state == "RETRY"} == again
            assert "INTERRUPTED" not in states.values()
            assert sorted(broker.drain_queue(app)) == sorted(SENDING)
            assert worker.count(">> .* left again$") == 1
            assert worker.count(" 0 interrupted, 0 given up") == 1


@pytest.mark.parametrize("pool", ["prefork", "spawn", "solo", "gevent"])
@pytest.mark.parametrize(
    ("name", "next_one"), [("looping", "sleeping"), ("handling", "about_to_wait")]
)
def test_signals_are_heard_after_a_task_that_took_them(
    name: str, next_one: str, pool: str, broker: Broker
) -> None:
    with broker.app() as app, start(pool, broker) as worker:
        worker.ready()
        app.send_task(f"{APP}.{name}").get(timeout=TIMEOUT)
        app.send_task(f"{APP}.{next_one}", task_id="mine")
        worker.wait_line(">> .* began mine$")
        if pool == "prefork":  # Ctrl-C, which the children ignore
            worker.signal(signal.SIGINT, group=True)
        worker.term(group=True)
        wait_until(lambda: app.AsyncResult("mine").state == "INTERRUPTED")
        assert not worker.count("Soft deadline"), "at once"
        assert worker.wait() == 0
        assert worker.count(" 1 interrupted, 0 given up") == 1
        assert broker.drain_queue(app) == ["mine"]


@pytest.mark.parametrize("pool", ["solo", "gevent"])
def test_signals_are_heard_while_a_task_holds_the_interpreter(pool: str, broker: Broker) -> None:
    """After one that took away what they are heard by then."""
    with broker.app() as app, start(pool, broker, CONF_graceful_grace_period="2.0") as worker:
        worker.ready()
        app.send_task(f"{APP}.looping").get(timeout=TIMEOUT)
        # That follows the result, from a loop which the next one brings to a halt.
        wait_until(lambda: not broker.held(), "the first is acknowledged")
        app.send_task(f"{APP}.deadlocked", task_id="mine")
        worker.wait_line(">> .* began mine$")
        worker.term()
        assert worker.wait() == -signal.SIGKILL
        # At 1.92 s; how soon that is seen here says more of the machine.
        assert worker.took < 12
        assert broker.held() == 1
