"""The table of check-ins: outcome x pool x who monitors, against a server that keeps them."""

from __future__ import annotations

import itertools
import signal
import subprocess
import uuid
from typing import Any

import pytest
from celery import Celery

from celery_graceful.monitors.slug import slugify
from tests.conftest import RedisDB
from tests.support.command import CELERY
from tests.support.peers import Project
from tests.support.workers import ROOT, TIMEOUT, Worker, end_leases, wait_until_heard

#: Seconds. Much room after the hard deadline: the machine may be slow.
GRACE, HARD = 60.0, 3.0

ANY = {"prefork", "spawn", "threads", "gevent", "eventlet", "solo"}
CHILDREN = {"prefork", "spawn"}
SOLO_CANNOT = ANY - {"solo"}
GOES_ON = ["in_progress", "in_progress", "ok"]

#: What is sent by the end, and in which pools it can be had.
OUTCOMES: dict[str, tuple[list[str], set[str]]] = {
    "success": (["in_progress", "ok"], ANY),
    "plain_success": (["in_progress", "ok"], ANY),
    "failure": (["in_progress", "error"], ANY),
    "plain_failure": (["in_progress", "error"], ANY),
    "retry_success": (["in_progress", *GOES_ON], ANY),
    "retry_failure": (["in_progress", "in_progress", "error"], ANY),
    "plain_retry": (GOES_ON, ANY),
    "retry_and_return": (GOES_ON, ANY),
    "retry_hook_raises": (GOES_ON, ANY),
    "failure_hook_raises": (["in_progress", "error"], ANY),
    "soft_limit": (["in_progress", "error"], SOLO_CANNOT),
    "hard_limit": (["in_progress", "error"], CHILDREN),
    "ignored": (["in_progress", "ok"], ANY),
    "rejected": (["in_progress", "error"], ANY),
    "revoked": (["error"], ANY),
    "expired": (["error"], ANY),
    "terminated": (["in_progress", "error"], SOLO_CANNOT),
    "child_killed": (GOES_ON, CHILDREN),
    "child_killed_for_good": (["in_progress", "error"], CHILDREN),
    "interrupted": (GOES_ON, ANY),
    "given_up": (GOES_ON, SOLO_CANNOT),
    "worker_killed": (GOES_ON, set()),  # in a test of its own
}

POOLS = ("prefork", "threads", "gevent", "solo")
CASES = [
    *itertools.product(("prefork", "threads"), ("own", "beat", "sentry")),
    *itertools.product(("gevent", "solo"), ("own",)),
    ("gevent", "sentry"),
    ("solo", "beat"),
    ("spawn", "own"),
    ("eventlet", "own"),
]

#: Those that outlast the first worker.
TWICE = ("interrupted", "given_up")


def env_of(url: str, backend: str, project: Project, how: str, **more: str) -> dict[str, str]:
    return {
        "BROKER_URL": url,
        "RESULT_URL": backend,
        "GRACE": str(GRACE),
        "CONF_graceful_hard_deadline": str(HARD),
        "LAST_RESORT": "20",
        "SENTRY_DSN": project.dsn,
        "MONITORS": how,
        **more,
    }


def start(env: dict[str, str], pool: str, **options: Any) -> Worker:
    concurrency = {"solo": 1, "spawn": 3}.get(pool, 6)  # to spawn one takes half a second
    worker = Worker("tests.apps.monitored", pool=pool, concurrency=concurrency, env=env, **options)
    return worker.ready()


def fire(env: dict[str, str], names: list[str]) -> None:
    """Have a real beat fire the entries."""
    argv = [*CELERY, "-A", "tests.apps.monitored", "beat"]
    argv += ["-S", "tests.apps.monitored:FireAtOnce", "--pidfile="]
    environ = {**env, "FIRE": ",".join(names), "PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(argv, env=environ, cwd=ROOT, capture_output=True, timeout=TIMEOUT)
    assert b"Traceback" not in done.stderr, done.stderr.decode()


def send(app: Celery, env: dict[str, str], names: list[str]) -> None:
    if env["MONITORS"] == "own":
        for name in names:
            expires = -1 if name == "expired" else None
            app.send_task(name, task_id=name, expires=expires)
    else:
        fire(env, names)


def statuses(events: list[dict[str, Any]]) -> list[str]:
    return [event["status"] for event in events]


def ended(events: list[dict[str, Any]]) -> bool:
    return any(status != "in_progress" for status in statuses(events))


@pytest.mark.parametrize(("pool", "how"), CASES)
def test_every_end(pool: str, how: str, redis_db: RedisDB, project: Project) -> None:
    names = [name for name, (_, pools) in OUTCOMES.items() if pool in pools]
    last = [name for name in TWICE if name in names]
    first = [name for name in names if name not in last]
    env = env_of(redis_db.url, redis_db.backend_url, project, how)
    with Celery("test", broker=redis_db.url, set_as_current=False) as app:
        with start(env, pool) as worker:
            wait_until_heard(app)
            app.control.revoke("revoked", reply=True, timeout=TIMEOUT, limit=1)
            send(app, env, first)
            if "terminated" in first:
                worker.wait_line("started terminated")
                app.control.revoke("terminated", terminate=True)
            project.wait(lambda found: all(ended(found.get(slugify(name), [])) for name in first))
            send(app, env, last)
            for name in last:
                worker.wait_line(f"started {name}")
            worker.term(group=True)
            assert worker.wait() == 0
            assert worker.took < 30, "of 60 s of grace"
            assert worker.count("NOT REACHED|could not be|No check-in") == 0
        found = project.check_ins()
        for name in last:
            assert not ended(found[slugify(name)]), name
        with start(env, pool) as other:
            found = project.wait(lambda found: all(ended(found[slugify(name)]) for name in last))
            other.term()
            assert other.wait() == 0
    check(found, names, how, said_again(worker, other))
    assert redis_db.client.keys("graceful:run:*") == []


@pytest.mark.parametrize(
    ("pool", "how"),
    [*((pool, "own") for pool in POOLS), ("prefork", "beat"), ("threads", "sentry")],
)
def test_kill_9_then_another_worker(
    pool: str, how: str, redis_db: RedisDB, project: Project
) -> None:
    lease = {"CONF_graceful_heartbeat_interval": "0.3"}
    env = env_of(redis_db.url, redis_db.backend_url, project, how, **lease)
    opened = 2 if how == "sentry" else 1  # beat has opened it
    with Celery("test", broker=redis_db.url, set_as_current=False) as app:
        with start(env, pool) as worker:
            send(app, env, ["worker_killed"])
            worker.wait_line("started worker_killed")
            project.wait(lambda found: len(found.get("worker_killed", [])) == opened)
            worker.signal(signal.SIGKILL, group=True)
            worker.wait()
            end_leases(redis_db.client)
        with start(env, pool) as other:
            found = project.wait(lambda found: ended(found["worker_killed"]))
            other.term()
            assert other.wait() == 0
    check(found, ["worker_killed"], how, said_again(worker, other))
    # The whole run's, the time between the two workers included.
    assert found["worker_killed"][-1]["duration"] > 0.3
    assert redis_db.client.keys("graceful:run:*") == []


def said_again(*workers: Worker) -> bool:
    """Whether one has told what the server may have heard: its answer did not come in time."""
    return any(worker.count("sentry does not answer") for worker in workers)


def check(
    found: dict[str, list[dict[str, Any]]], names: list[str], how: str, again: bool = False
) -> None:
    """One id a run, one end, nothing open, and what the server is told is fit for it."""
    assert {slugify(slug) for slug in found} == {slugify(name) for name in names}
    for slug, events in found.items():
        expected = OUTCOMES[slug][0]
        if how == "sentry":  # beat has opened it, and says so from a thread: that may come late
            expected = ["in_progress", *expected]
            events = sorted(events, key=lambda event: event["status"] != "in_progress")
        told = statuses(events)
        if again:
            told, expected = ([one for one, _ in itertools.groupby(s)] for s in (told, expected))
        assert told == expected, slug
        assert len({event["check_in_id"] for event in events}) == 1, slug
        assert uuid.UUID(events[0]["check_in_id"])
        assert 0 <= events[-1]["duration"] < TIMEOUT, slug
        opening = [event for event in events if event["status"] == "in_progress"]
        assert all(event["duration"] is None for event in opening), slug
        for event in events:
            config = event["monitor_config"]
            if how == "own":
                assert config["schedule"] == {"type": "crontab", "value": "0 4 * * *"}
            else:
                assert config["schedule"] == {"type": "interval", "value": 1, "unit": "hour"}
            assert config["timezone"] == "UTC"
    if how == "own" and "hard_limit" in found:
        assert found["hard_limit"][0]["monitor_config"]["max_runtime"] == 1
    if "retry_success" in found and how != "sentry":  # the whole run's: three times 0.05 s
        assert found["retry_success"][-1]["duration"] >= 0.15
