"""GracefulTask composed with other people's bases and with all that Celery can do with a task.

A worker is stopped while every task of a test runs in it; a second one finishes what the first
one gave back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chord, group, signature

from celery_graceful.messages.comebacks import SENT_AGAIN
from celery_graceful.messages.redelivered_flag import BEGUN
from tests.conftest import RabbitVhost, RedisDB
from tests.support.raw import LOSES_EVENTS, Events, raw_messages
from tests.support.workers import TIMEOUT, Worker, wait_until

APP = "tests.apps.compositions"
#: Seconds. Much room behind the soft deadline: the machine may be slow.
GRACE, SOFT, HARD = "90", "1.5", "80"
POOLS = ("prefork", "threads")

COMPOSED = [
    *(
        name
        for base in ("Hooks", "CallsSuper", "CallsRun", "Swallows", "Singleton")
        for name in (f"GracefulTask_{base}", f"{base}_GracefulTask")
    ),
    "class_based",
    "class_based_with_call",
    "deeper",
    "unbound",
    "autoretry",
    "autoretry_base",
    "by_hand",
    "by_hand_bare",
    "pydantic",
]
HOWS = ("point", "limit")


def client_app(broker: str, backend: str | None = None) -> Celery:
    app = Celery("client", broker=broker, backend=backend, set_as_current=False)
    app.conf.broker_connection_timeout = TIMEOUT
    return app


def worker(
    db: RedisDB | None = None,
    *,
    app: str = APP,
    env: Mapping[str, str] | None = None,
    events: bool = False,
    **options: Any,
) -> Worker:
    env = dict(env or {})
    if db is not None:
        env = {"BROKER_URL": db.url, "RESULT_URL": db.backend_url, **env}
    env.setdefault("CONF_graceful_soft_deadline", SOFT)
    env.update(GRACE=GRACE, CONF_graceful_hard_deadline=HARD)
    args = ["-E"] if events else []
    return Worker(app, env=env, args=args, **options)


def send(app: Celery, name: str, how: str, **options: Any) -> str:
    argument: Any = {"how": how} if name == "pydantic" else how
    return str(app.send_task(name, (argument,), **options).id)


def said(lines: list[str], *words: str) -> Counter[str]:
    """Of the lines `>> <time> <words> ...`, what comes after the words."""
    start = [*words]
    found: Counter[str] = Counter()
    for line in lines:
        parts = line.split()
        if parts[:1] == [">>"] and parts[2 : 2 + len(start)] == start:
            found[" ".join(parts[2 + len(start) :])] += 1
    return found


def stopped(first: Worker) -> None:
    """It ends in good order, within its grace."""
    assert first.wait() == 0
    assert first.took < float(GRACE)


def assert_events(seen: list[str], expected: list[str], pool: str) -> None:
    if pool == "threads" and LOSES_EVENTS:
        assert seen == [type for type in expected if type in seen]
    else:
        assert seen == expected


@pytest.mark.parametrize("pool", POOLS)
def test_bases_hooks_and_retries(redis_db: RedisDB, pool: str) -> None:
    app = client_app(redis_db.url, redis_db.backend_url)
    events = Events(app)
    ids = {send(app, name, how): (name, how) for name in COMPOSED for how in HOWS}
    before = raw_messages(redis_db.client)
    assert before.keys() == ids.keys()

    # Who waits at a point has to be told there before: a limit would be swallowed.
    env = {"CONF_graceful_soft_deadline": "8"}
    with worker(redis_db, pool=pool, concurrency=len(ids), events=True, env=env) as first:
        first.wait_line("^>> .* started ", count=len(ids))
        first.term()
        stopped(first)

    # A base that swallows exceptions swallows those of a soft time limit: its choice.
    swallowed = {id for id, (name, how) in ids.items() if "Swallows" in name and how == "limit"}
    interrupted = ids.keys() - swallowed
    assert len(swallowed) == 2
    assert f"{len(swallowed)} finished, {len(interrupted)} interrupted, 0 given up" in first.output

    # The same messages are back: nothing counted, nothing added, nothing sent beside them.
    assert raw_messages(redis_db.client) == {id: before[id] for id in interrupted}
    assert redis_db.client.hlen("unacked") == 0

    seen = events.all()
    for id, (name, how) in ids.items():
        state = "SUCCESS" if id in swallowed else "INTERRUPTED"
        assert app.AsyncResult(id).state == state, (name, how)
        end = "task-succeeded" if id in swallowed else "task-interrupted"
        assert_events(seen.get(id, []), ["task-received", "task-started", end], pool)

    signals = said(first.lines, "signal")
    assert signals == Counter(
        [
            *(f"task_interrupted {ids[id][0]} {id} shutdown False" for id in interrupted),
            *(f"task_success {ids[id][0]} {id}" for id in swallowed),
        ]
    )
    hooks = said(first.lines, "hook")
    hooked = {
        id
        for id, (name, _) in ids.items()
        if "Hooks" in name or "retry" in name or "by_hand" in name or "with_call" in name
    }
    expected = [f"before_start {ids[id][0]} {id}" for id in hooked]
    # GracefulTask first: its own on_interrupted, which does nothing, is found first.
    first_found = {id for id in hooked if ids[id][0] != "GracefulTask_Hooks"}
    expected += [f"on_interrupted {ids[id][0]} {id}" for id in first_found]
    assert hooks == Counter(expected)

    with worker(redis_db, pool=pool, env={"SECOND": "1"}, concurrency=4, events=True) as second:
        second.wait_line("^>> .* signal task_success ", count=len(interrupted))
        second.term()
        assert second.wait() == 0
    started = said(second.lines, "started")
    assert started == Counter(
        f"{name} {how} {id} retries=0" for id, (name, how) in ids.items() if id in interrupted
    )
    for id, (name, how) in ids.items():
        result = app.AsyncResult(id).get(timeout=TIMEOUT)
        if name == "pydantic":
            result = result["name"]
        assert result == ("swallowed" if id in swallowed else name), (name, how)
    hooks = said(second.lines, "hook")
    assert hooks == Counter(
        f"{hook} {ids[id][0]} {id}"
        for id in hooked
        for hook in ("before_start", "on_success", "after_return")
    )
    # Locks of celery-singleton are held over the interruption, and freed at the end.
    assert not list(backend_keys(redis_db, "SINGLETONLOCK*"))


def backend_keys(db: RedisDB, pattern: str) -> list[str]:
    import redis

    with redis.Redis.from_url(db.backend_url, decode_responses=True) as client:
        return list(client.scan_iter(pattern))


def everything() -> dict[str, Any]:
    """Options of a message that carries all that a message can carry."""
    soon = datetime.now(timezone.utc) + timedelta(seconds=0.1)
    return {
        "eta": soon,  # passed when the worker starts it
        "expires": 3600.123,
        "headers": {"x-tenant": "acme", "nested": {"empty": [], "big": 2**60}},
        "link": [signature("called_back", ("linked",)), signature("called_back", ("too",))],
        "link_error": signature("called_back", ("failed",), immutable=True),
        "priority": 3,
        "reply_to": "somebody",
        "shadow": "shadow.name",
        "soft_time_limit": 300,
        "time_limit": 400,
        "argsrepr": "<hidden>",
        "kwargsrepr": "<hidden>",
        "root_id": "a-root",
        "parent_id": "a-parent",
        "group_id": "a-group",
        "group_index": 7,
        "retries": 2,
        "stamped_headers": ["customer"],
        "customer": ["c-1"],
    }


NAMES = ("late", "early", "ignoring")


def send_everything(app: Celery) -> dict[str, str]:
    ids = {}
    for name in NAMES:
        options = everything()
        if name == "ignoring":
            options["ignore_result"] = True
        for how in ("point", "limit"):
            ids[app.send_task(name, (how,), **options).id] = name
        for compression in ("gzip",):
            ids[app.send_task(name, ("point",), compression=compression).id] = name
        ids[app.send_task(name, (), {"how": "point"}).id] = name
    return ids


def test_messages_come_back_whole_redis(redis_db: RedisDB) -> None:
    app = client_app(redis_db.url, redis_db.backend_url)
    events = Events(app)
    ids = send_everything(app)
    before = raw_messages(redis_db.client)
    assert before.keys() == ids.keys()
    with worker(redis_db, pool="threads", concurrency=len(ids), events=True) as first:
        first.wait_line("^>> .* started ", count=len(ids))
        first.term()
        stopped(first)
    after = raw_messages(redis_db.client)
    for id, name in ids.items():
        for message in after.get(id, ()) if name == "early" else ():  # it is a copy, and says so
            assert message["headers"].pop(SENT_AGAIN)
        assert uncompressed(after.get(id)) == uncompressed(before[id]), (ids[id], first.output)
    assert after.keys() == before.keys()
    seen = events.all()
    for id, name in ids.items():
        expected = ["task-received", "task-started", "task-interrupted"]
        assert_events(seen.get(id, []), expected, "threads")
        state = "PENDING" if name == "ignoring" else "INTERRUPTED"
        assert app.AsyncResult(id).state == state, name


def uncompressed(messages: list[dict[str, Any]] | None) -> Any:
    """A body that was sent again need not be compressed again: what it says counts."""
    import base64
    import zlib

    for message in messages or ():
        body = base64.b64decode(message["body"])
        if message["headers"].pop("compression", None):
            body = zlib.decompress(body)
        message["body"] = body
    return messages


def test_messages_come_back_whole_rabbitmq(rabbit_vhost: RabbitVhost, redis_db: RedisDB) -> None:
    env = {"BROKER_URL": rabbit_vhost.url, "RESULT_URL": redis_db.backend_url}
    # A queue without priorities and one with them: both keep the property.
    app = client_app(rabbit_vhost.url, redis_db.backend_url)

    def peek() -> dict[str, Any]:
        """All messages, given back unread."""
        found: dict[str, Any] = {}
        with app.connection_for_read() as connection:
            queue = app.amqp.queues["celery"](connection.default_channel)
            queue.declare()
            while (message := queue.get(no_ack=False)) is not None:
                properties = dict(message.properties)
                info = dict(message.delivery_info)
                for name in ("delivery_tag", "redelivered", "message_count", "consumer_tag"):
                    info.pop(name, None)
                body = message.body
                headers = dict(message.headers)
                properties["application_headers"] = dict(properties["application_headers"])
                for mapping in (headers, properties["application_headers"]):
                    mapping.pop("x-delivery-count", None)  # set by the broker
                content = (message.content_type, message.content_encoding)
                if isinstance(body, memoryview):
                    body = bytes(body)
                assert message.headers["id"] not in found, "twice in the queue"
                found[message.headers["id"]] = (
                    headers,
                    properties,
                    info,
                    content,
                    bytes(body if isinstance(body, bytes) else body.encode()),
                )
        return found

    def wait_for_all() -> None:
        """What is just sent, or given back, RabbitMQ may not have put into the queue yet."""
        wait_until(lambda: rabbit_vhost.queue_length("celery") == len(ids), "all are there")

    ids = send_everything(app)
    wait_for_all()
    before = peek()
    assert before.keys() == ids.keys()
    with worker(env=env, pool="threads", concurrency=len(ids)) as first:
        first.wait_line("^>> .* started ", count=len(ids))
        first.term()
        stopped(first)
    wait_for_all()
    after = peek()
    for id, name in ids.items():
        headers, properties, *_ = before[id]
        expires = properties.pop("expiration", None) is not None  # what has begun does not
        for mapping in (headers, properties["application_headers"]):
            if expires:
                mapping["redelivered"] = BEGUN
            if expires or name == "early":  # else it was given back as it is
                mapping[SENT_AGAIN] = True
            if name == "early":  # sent again, of what kombu had decompressed
                mapping.pop("compression", None)
        assert after.get(id) == before[id], (name, first.output)
    assert after.keys() == before.keys()


@pytest.mark.parametrize("pool", POOLS)
def test_chords_and_groups_complete_once(redis_db: RedisDB, pool: str) -> None:
    app = client_app(redis_db.url, redis_db.backend_url)

    def member(name: str, *args: Any) -> Any:
        return signature(name, args, app=app)

    body = member("collect")
    results = [
        chord([member("late"), member("quick", "q"), member("early")], app=app)(body),
        group([member("late"), member("quick", "g"), member("early")], app=app).apply_async(),
        (member("late") | member("called_back")).apply_async(),
    ]
    with worker(redis_db, pool=pool, concurrency=8) as first:
        first.wait_line("^>> .* started (late|early) ", count=5)
        first.wait_line("signal task_success quick ", count=2)
        first.term()
        stopped(first)
    assert not said(first.lines, "collected")
    assert not said(first.lines, "called", "back")
    with worker(redis_db, pool=pool, env={"SECOND": "1"}) as second:
        values = [result.get(timeout=TIMEOUT) for result in results]
        second.wait_line("signal task_success called_back ")
        second.term()
        assert second.wait() == 0
    assert values == [["early", "late", "q"], ["late", "g", "early"], None]
    assert said(second.lines, "collected") == Counter(["early late q"])
    assert said(second.lines, "called", "back") == Counter(["late"])
    assert sum(said(second.lines, "started").values()) == 5
    assert not raw_messages(redis_db.client)


@pytest.mark.parametrize("pool", POOLS)
def test_sentry_sees_no_error(redis_db: RedisDB, pool: str, tmp_path: Path) -> None:
    app = client_app(redis_db.url, redis_db.backend_url)
    names = ["late", "early", "autoretry", "CallsSuper_GracefulTask", "GracefulTask_CallsRun"]
    ids = {send(app, name, how): (name, how) for name in names for how in HOWS}
    failed = app.send_task("fails").id
    path = tmp_path / "sentry"
    env = {"SENTRY": str(path)}
    with worker(redis_db, pool=pool, env=env, concurrency=len(ids) + 1) as first:
        first.wait_line("^>> .* started ", count=len(ids))
        first.wait_line("signal task_failure fails ")
        first.term()
        stopped(first)
    assert len(raw_messages(redis_db.client)) == len(ids)
    items = [json.loads(line) for line in path.read_text().splitlines()]
    errors = [payload for kind, payload in items if kind == "event"]
    # The one that did fail shows that errors arrive.
    assert [e["contexts"]["trace"].get("op") is not None for e in errors] == [True]
    assert errors[0]["exception"]["values"][-1]["type"] == "LookupError"
    transactions = {
        payload["contexts"]["celery-job"]["task_id"]
        if "celery-job" in payload["contexts"]
        else payload["extra"]["celery-job"].get("task_id", n): payload
        for n, (kind, payload) in enumerate(items)
        if kind == "transaction"
    }
    statuses = Counter(
        (p["transaction"], p["contexts"]["trace"].get("status")) for p in transactions.values()
    )
    # "aborted" is what Sentry's integration gives to every Ignore and Retry.
    assert statuses.pop(("fails", "internal_error")) == 1
    assert {status for _, status in statuses} == {"aborted"}, statuses
    assert failed


SITE = {"DJANGO_SETTINGS_MODULE": "tests.apps.site_settings"}


@pytest.mark.parametrize("pool", POOLS)
def test_django(redis_db: RedisDB, pool: str) -> None:
    app = client_app(redis_db.url, redis_db.backend_url)
    names = ["shared", "default", "own_base", "django_first", "graceful_first"]
    ids = {send(app, name, how): name for name in names for how in HOWS}
    options: dict[str, Any] = {"app": "tests.apps.site", "pool": pool}
    with worker(redis_db, env=SITE, concurrency=len(ids), **options) as first:
        first.wait_line("^>> .* started ", count=len(ids))
        first.term()
        stopped(first)
    assert raw_messages(redis_db.client).keys() == ids.keys()
    assert {app.AsyncResult(id).state for id in ids} == {"INTERRUPTED"}
    with worker(redis_db, env={**SITE, "SECOND": "1"}, **options) as second:
        # Each of them sends another one when its transaction is committed.
        second.wait_line("^>> .* committed ", count=len(ids))
        second.term()
        assert second.wait() == 0
    assert said(second.lines, "committed") == Counter({name: len(HOWS) for name in names})
