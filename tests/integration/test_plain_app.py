"""Apps whose tasks know nothing of celery_graceful, with the plugin and without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_graceful import Graceful
from tests.conftest import RedisDB
from tests.support.raw import LOSES_EVENTS, Events, raw_messages
from tests.support.workers import Worker, wait_until

#: Seconds, with room between the deadlines: the machine may stand still for ten.
GRACE, SOFT, HARD = 40.0, 11.0, 22.0
DEADLINES = {
    "GRACE": str(GRACE),
    "CONF_graceful_soft_deadline": str(SOFT),
    "CONF_graceful_hard_deadline": str(HARD),
}

NAMES = ("early", "early_handles", "early_ignores", "late", "short", "loud", "loud_by_name")


def env_of(db: RedisDB, **env: str) -> dict[str, str]:
    return {"BROKER_URL": db.url, "RESULT_URL": db.backend_url, **DEADLINES, **env}


def client_app(db: RedisDB) -> Celery:
    return Celery("client", broker=db.url, backend=db.backend_url, set_as_current=False)


@pytest.mark.parametrize(
    ("pool", "env"), [("prefork", {}), ("threads", {"TWICE": "1"})], ids=["prefork", "threads"]
)
def test_plain_app_with_the_plugin(
    redis_db: RedisDB, pool: str, env: dict[str, str], tmp_path: Path
) -> None:
    app = client_app(redis_db)
    events = Events(app)
    ids = {name: app.send_task(name, priority=3, expires=3600).id for name in NAMES}
    before = raw_messages(redis_db.client)
    gate = tmp_path / "stopping"
    env = env_of(redis_db, GATE=str(gate), **env)
    with Worker("tests.apps.plain", pool=pool, concurrency=len(ids), env=env, args=["-E"]) as first:
        first.wait_line("^>> .* started ", count=len(ids))
        first.term()
        first.wait_line("Stopping, asked for by SIGTERM")
        gate.touch()
        assert first.wait() == 0
        assert HARD < first.took < GRACE

    back = {ids["early_ignores"], ids["late"]}
    after = raw_messages(redis_db.client)
    assert after == {id: before[id] for id in back}
    assert redis_db.client.hlen("unacked") == 0

    # The soft deadline is for those that would lose their message at the hard one.
    assert first.count("handled ShutdownTimeLimit") == 1
    assert first.count("ignored ShutdownTimeLimit") == 1
    assert first.count("NOT LEFT ALONE") == 0
    assert first.count("Grace period: 40 s") == 1
    assert first.count("Stopping, asked for by SIGTERM") == 1
    assert first.count("Stopped: 5 finished, 0 interrupted, 2 given up, 0 released") == 1

    # Request classes of the user's own are used.
    # (Celery itself puts its own on_success in the place of theirs.)
    assert first.count(" accepted loud$") == first.count(" accepted loud_by_name$") == 1
    assert first.count(" failed loud_by_name$") == 1

    states = {name: app.AsyncResult(id).state for name, id in ids.items()}
    assert states == {
        "early": "FAILURE",
        "early_handles": "SUCCESS",
        "early_ignores": "INTERRUPTED",
        "late": "INTERRUPTED",
        "short": "SUCCESS",
        "loud": "SUCCESS",
        "loud_by_name": "FAILURE",
    }
    assert type(app.AsyncResult(ids["early"]).result).__name__ == "ShutdownTimeLimit"
    ends = {
        "SUCCESS": "task-succeeded",
        "FAILURE": "task-failed",
        "INTERRUPTED": "task-interrupted",
    }
    seen = events.all()
    if not (pool == "threads" and LOSES_EVENTS):
        last = {name: seen[id][-1] for name, id in ids.items()}
        assert last == {name: ends[state] for name, state in states.items()}

    env["SECOND"] = "1"
    with Worker("tests.apps.plain", pool=pool, env=env) as second:
        second.wait_line("succeeded in", count=len(back))
        second.term()
        assert second.wait() == 0
    assert second.count(" started ") == len(back)
    assert {app.AsyncResult(id).state for id in back} == {"SUCCESS"}
    assert not raw_messages(redis_db.client)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_a_request_says_and_what_its_task_is_given(redis_db: RedisDB, pool: str) -> None:
    app = client_app(redis_db)
    app.send_task("scrubbed", ("ann",), {"password": "secret"})
    app.send_task("sealed", ("drow",))
    with Worker("tests.apps.plain", pool=pool, env=env_of(redis_db)) as worker:
        worker.wait_line("succeeded in", count=2)
        worker.term()
        assert worker.wait() == 0
    assert worker.count("^>> .* given ann secret$") == 1
    assert worker.count("^>> .* given word$") == 1


def test_twice_is_as_once() -> None:
    app = Celery("twice", set_as_current=False)
    Graceful(app)
    steps = {name: set(found) for name, found in app.steps.items()}
    created = app.create_task_cls
    Graceful(app)
    assert app.steps == steps
    assert app.create_task_cls == created


def test_default_task_twice() -> None:
    app = Celery("twice", set_as_current=False)
    app.conf.graceful_default_task = True
    Graceful(app)
    Graceful(app)
    names = [cls.__name__ for cls in app.Task.__mro__]
    assert names.count("GracefulTask") == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_without_result_backend(redis_db: RedisDB, pool: str) -> None:
    app = Celery("client", broker=redis_db.url, set_as_current=False)
    ids = [app.send_task(name, ("point",)).id for name in ("late", "early", "ignoring")]
    env = {"BROKER_URL": redis_db.url, "GRACE": "60"}
    with Worker("tests.apps.compositions", pool=pool, concurrency=3, env=env) as first:
        first.wait_line("^>> .* started ", count=3)
        first.term()
        assert first.wait() == 0
        assert first.took < 30, "of 60 s of grace"
    assert sorted(raw_messages(redis_db.client)) == sorted(ids)
    assert first.count("Could not store") == 0
    assert first.count("signal task_interrupted") == 3


def wait_acknowledged(db: RedisDB, count: int, *, of: int) -> None:
    """Until that many of the messages are acknowledged and the others are fetched."""
    wait_until(
        lambda: db.client.hlen("unacked") == of - count and not db.client.llen("celery"),
        "acknowledged",
    )


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_an_app_without_the_plugin_behaves_as_before(
    redis_db: RedisDB, pool: str, tmp_path: Path
) -> None:
    """A warm shutdown of plain Celery, with this package imported and without."""
    app = client_app(redis_db)
    outcomes: list[Any] = []
    for env in ({}, {"IMPORT": "1"}):
        gate = tmp_path / f"gate {len(outcomes)}"
        # The third waits for its time: what becomes of one that waits for a place is chance in
        # Celery.
        ids = [app.send_task("gated", (str(gate),), countdown=eta).id for eta in (0, 0, 3600)]
        options = {"pool": pool, "concurrency": 2, "env": env_of(redis_db, **env)}
        with Worker("tests.apps.bare", **options) as plain:  # type: ignore[arg-type]
            plain.wait_line("^>> .* started ", count=2)
            plain.wait_line("gated.* received", count=3)
            wait_acknowledged(redis_db, 2, of=3)
            plain.term()
            plain.wait_line("worker: Warm shutdown")
            gate.touch()
            status = plain.wait()
        states = [app.AsyncResult(id).state for id in ids]
        left = raw_messages(redis_db.client)
        redis_db.client.flushdb()
        outcomes.append(
            {
                "status": status,
                "states": states,
                "left": len(left),
                "started": plain.count(" started gated"),
                "finished": plain.count(" finished gated"),
                "warm": plain.count("worker: Warm shutdown"),
                "ours": plain.count("(?i)grace(?!ful/)"),  # and no path of the project
            }
        )
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]["warm"] == 1
    assert outcomes[0]["finished"] >= 2
    assert outcomes[0]["ours"] == 0


def test_an_app_whose_plugin_was_forgotten(redis_db: RedisDB) -> None:
    """Its graceful tasks would not stop, and nobody would know why."""
    with Worker("tests.apps.bare", pool="solo", env=env_of(redis_db, FORGOTTEN="1")) as worker:
        worker.wait_line("This worker is not graceful, as Graceful.app. was not called for <Celery")
        worker.wait_line("graceful 0, graceful 1, .* graceful 4 and 2 more, nor")
