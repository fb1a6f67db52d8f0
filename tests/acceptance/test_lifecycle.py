"""The lifecycle table: pool x task x stop, and each with each broker, by real workers and signals.

Each case ends with: the worker gone within its grace, exit status 0, each message finished
exactly once or in the queue exactly once, events and states truthful. To keep it short a
worker carries all kinds of tasks at once, where its pool can.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import pytest
from celery import Celery

from tests.support.broker import Broker
from tests.support.raw import LOSES_EVENTS, Events
from tests.support.workers import Worker, wait_until_heard

#: Seconds. Much room after each deadline: the machine may be slow.
GRACE, SOFT, HARD = 60.0, 0.5, 8.0
#: Seconds that a stop takes at most, hard deadline and all.
IN_TIME = 40.0
#: Of what ends by itself, however slow the machine is.
LATE = {"CONF_graceful_soft_deadline": "29.0", "CONF_graceful_hard_deadline": "30.0"}

CONCURRENT = ["prefork", "spawn", "threads", "gevent", "eventlet"]
POOLS = [*CONCURRENT, "solo"]
GREEN = ["gevent", "eventlet"]
# The signal to a group comes first: it reaches children, who have inherited the broker's socket.
SIGNALS = ["group", "term", "int", "remap"]
STOPS = [*SIGNALS, "remote"]
# Those that children see nothing of: how these were started is all that is special in this pool.
# And where there are no children, a signal to the group is one to the worker.
NOT_WHERE = {"spawn": ("int", "remap"), **dict.fromkeys(["threads", *GREEN], ("group",))}
KINDS = {
    # What becomes of it, and its state in the backend.
    "cooperative": ("requeued", "INTERRUPTED"),
    "sleeping": ("requeued", "INTERRUPTED"),
    "blocking": ("requeued", "INTERRUPTED"),
    "handling": ("finished", "SUCCESS"),
    "shielded": ("requeued", "INTERRUPTED"),
    "swallowing": ("requeued", "INTERRUPTED"),
    "stuck": ("requeued", "INTERRUPTED"),
}


def table(rows: Iterable[str], stops: Sequence[str] = STOPS) -> list[tuple[str, str, str]]:
    """Each row with each stop on Redis; on RabbitMQ with the stop that comes by it, and a signal.

    No signal has to do with the broker before the drain has begun, and then all are the same one:
    so the signals take turns there.
    """
    cases = []
    for turn, row in enumerate(rows):
        cases += [(row, how, "redis") for how in stops if how not in NOT_WHERE.get(row, ())]
        if row == "spawn":  # what comes of its start has nothing to do with the broker
            continue
        cases.append((row, SIGNALS[turn % len(SIGNALS)], "rabbitmq"))
        if "remote" in stops:
            cases.append((row, "remote", "rabbitmq"))
    return cases


def in_turn(rows: Iterable[str], signals: Sequence[str]) -> list[tuple[str, str, str]]:
    """Each row with two of the signals, and with another one on RabbitMQ: they take turns."""
    return [
        (row, signals[(turn + step) % len(signals)], broker)
        for turn, row in enumerate(rows)
        for step, broker in enumerate(("redis", "redis", "rabbitmq"))
    ]


def stop(worker: Worker, how: str, app: Celery) -> None:
    if how == "remote":
        wait_until_heard(app)
        worker.stopped_at = time.monotonic()
        app.control.shutdown()
    elif how == "int":
        worker.signal(signal.SIGINT)
    else:
        worker.term(group=how == "group")


def start(pool: str, broker: Broker, how: str, concurrency: int, **env: str) -> Worker:
    deadlines = {"CONF_graceful_soft_deadline": str(SOFT), "CONF_graceful_hard_deadline": str(HARD)}
    env = {"LAST_RESORT": "20", **deadlines, **env, **broker.env, "GRACE": str(GRACE)}
    if how == "remap":
        env["REMAP_SIGTERM"] = "SIGQUIT"
    if pool == "threads":
        env["short_sleeps"] = "1"
    return Worker("tests.apps.lifecycle", pool=pool, concurrency=concurrency, env=env, args=["-E"])


def check(
    worker: Worker,
    broker: Broker,
    app: Celery,
    events: Events,
    sent: dict[str, str],
    expected: Callable[[str], tuple[str, str]],
) -> None:
    """The promises of a stop, for every message that was sent."""
    assert worker.wait() == 0
    assert worker.took < IN_TIME
    finished = {task_id: worker.count(f">> .* finished {task_id}") for task_id in sent}
    queued = Counter(broker.drain_queue(app, at_least=list(finished.values()).count(0)))
    assert broker.held() == 0
    assert worker.count("NOT REACHED") == 0
    problems = worker.count("Traceback|CRITICAL|Could not")
    if worker.pool == "spawn":  # a child that was still starting when the worker was gone
        problems -= worker.count("EOFError: Ran out of input")
    assert problems == 0
    all_events = worker.pool != "threads" or not LOSES_EVENTS
    for task_id in sent if all_events else ():
        if finished[task_id]:
            events.wait(task_id, "task-succeeded")
        elif app.AsyncResult(task_id).state == "INTERRUPTED":
            events.wait(task_id, "task-interrupted")
    seen = events.all()
    for task_id, kind in sent.items():
        outcome, state = expected(kind)
        times = finished[task_id]
        assert times + queued.pop(task_id, 0) == 1, (kind, times)
        assert outcome in ("finished" if times else "requeued", "either"), (kind, outcome)
        stored = app.AsyncResult(task_id).state
        if outcome == "either":  # the stop may have come when it was about to begin
            state = "SUCCESS" if times else "INTERRUPTED" if stored == "INTERRUPTED" else "PENDING"
        assert stored == state, kind
        types = seen.get(task_id, [])
        assert not {"task-failed", "task-retried", "task-revoked"} & set(types), (kind, types)
        if all_events:
            assert types.count("task-succeeded") == times, (kind, types)
            if state == "INTERRUPTED":
                assert types.count("task-interrupted") == 1, (kind, types)
    assert not queued, "messages that nobody sent"
    report = worker.wait_line(r"Stopped: \d+ finished, \d+ interrupted, \d+ given up")
    assert report


def send(app: Celery, kind: str) -> str:
    return str(app.send_task(f"tests.apps.lifecycle.{kind}").id)


@pytest.mark.parametrize(("pool", "how", "broker"), table(CONCURRENT), indirect=["broker"])
def test_all_kinds_at_once(pool: str, how: str, broker: Broker, app: Celery) -> None:
    # A C call in a greenlet holds up all of them: that is a case of its own.
    kinds = [kind for kind in KINDS if not (pool in GREEN and kind == "stuck")]
    events = Events(app)
    with start(pool, broker, how, concurrency=len(kinds)) as worker:
        worker.ready()
        sent = {send(app, kind): kind for kind in kinds}
        for task_id, kind in sent.items():
            worker.wait_line(f">> .* started {kind} {task_id}")
        # No room for these: they are prefetched, and go back at once.
        waiting = {send(app, "short"): "short" for _ in range(3)}
        stop(worker, how, app)
        check(
            worker,
            broker,
            app,
            events,
            {**sent, **waiting},
            lambda kind: KINDS.get(kind, ("requeued", "PENDING")),
        )


@pytest.mark.parametrize(("pool", "how", "broker"), in_turn(POOLS, SIGNALS), indirect=["broker"])
def test_short_tasks(pool: str, how: str, broker: Broker, app: Celery) -> None:
    """Tasks that end within the grace do end; what did not start goes back."""
    events = Events(app)
    with start(pool, broker, how, concurrency=2, **LATE) as worker:
        worker.ready()
        sent = {send(app, "short"): "short" for _ in range(20)}
        worker.wait_line(">> .* started short")
        stop(worker, how, app)
        check(worker, broker, app, events, sent, lambda kind: ("either", ""))


@pytest.mark.parametrize(
    ("pool", "how", "broker"),
    [
        *((pool, "remote", broker) for pool in POOLS for broker in ("redis", "rabbitmq")),
        *((pool, SIGNALS[-turn % len(SIGNALS)], "redis") for turn, pool in enumerate(POOLS)),
    ],
    indirect=["broker"],
)
def test_idle(pool: str, how: str, broker: Broker, app: Celery) -> None:
    events = Events(app)
    with start(pool, broker, how, concurrency=2) as worker:
        worker.ready()
        stop(worker, how, app)
        check(worker, broker, app, events, {}, KINDS.__getitem__)


@pytest.mark.parametrize(
    ("kind", "how", "broker"), in_turn(KINDS, ["term", "int", "remap"]), indirect=["broker"]
)
def test_solo(kind: str, how: str, broker: Broker, app: Celery) -> None:
    """One task at a time, in the loop itself: remote control does not reach it meanwhile."""
    events = Events(app)
    with start("solo", broker, how, concurrency=1, LAST_RESORT="3") as worker:
        worker.ready()
        sent = {send(app, kind): kind}
        worker.wait_line(f">> .* started {kind}")
        sent.update({send(app, "short"): "short" for _ in range(2)})
        stop(worker, how, app)
        check(
            worker,
            broker,
            app,
            events,
            sent,
            lambda kind: KINDS.get(kind, ("requeued", "PENDING")),
        )


@pytest.mark.parametrize(
    ("pool", "how", "broker"), in_turn(GREEN, ["term", "int", "remap"]), indirect=["broker"]
)
def test_green_pool_stuck_in_a_c_call(pool: str, how: str, broker: Broker, app: Celery) -> None:
    events = Events(app)
    # Nothing ends by itself here.
    soon = {"CONF_graceful_hard_deadline": "3.0", "LAST_RESORT": "3"}
    with start(pool, broker, how, concurrency=2, **soon) as worker:
        worker.ready()
        first = {send(app, "cooperative"): "cooperative"}
        worker.wait_line(">> .* started cooperative")
        sent = {**first, send(app, "stuck"): "stuck"}
        worker.wait_line(">> .* started stuck")
        stop(worker, how, app)
        check(worker, broker, app, events, sent, KINDS.__getitem__)
