"""Check-ins: real workers, real peers, and peers that are away."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import celery
import pytest
import sentry_sdk
from celery import Celery
from celery import signals as celery_signals
from celery.app.trace import build_tracer
from celery.beat import Scheduler
from celery.exceptions import Ignore
from celery.schedules import crontab
from celery.signals import after_task_publish
from sentry_sdk.integrations.celery import CeleryIntegration

from celery_graceful import (
    INTERRUPTED,
    Graceful,
    GracefulTask,
    Interrupted,
    Monitor,
    SettingsError,
    checkin,
)
from celery_graceful.monitors import beat, block, dispatch, named_monitors
from celery_graceful.monitors.heartbeat import Heartbeats, interval_of
from celery_graceful.monitors.outcome import close_dead
from celery_graceful.monitors.registry import STAMP, Monitors, monitors_of
from celery_graceful.monitors.report import Report
from celery_graceful.monitors.setup_warnings import say_what_is_silent, say_who_is_unknown
from celery_graceful.monitors.tracer import silence_sentry, trace_with_check_in
from celery_graceful.store.app_stores import find_store
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import Board
from tests.apps import entries
from tests.conftest import RabbitVhost, RedisDB
from tests.support.command import CELERY
from tests.support.logs import own_records
from tests.support.peers import HealthchecksServer, Project, environ
from tests.support.processes import LOOPBACK
from tests.support.workers import ROOT, TIMEOUT, Worker, wait_until

#: Seconds. Much room after the hard deadline: the machine may be slow.
GRACE, HARD = 20.0, 4.0


@pytest.fixture
def pings() -> Iterator[HealthchecksServer]:
    server = HealthchecksServer()
    yield server
    server.close()


def start(url: str, backend: str, dsn: str, *, pool: str = "prefork", **env: str) -> Worker:
    env = {"GRACE": str(GRACE), "CONF_graceful_hard_deadline": str(HARD), **env}
    env.setdefault("CONF_graceful_monitor_timeout", str(TIMEOUT))  # one that is busy is not away
    env.update(BROKER_URL=url, RESULT_URL=backend)
    if dsn:
        env["SENTRY_DSN"] = dsn
    return Worker("tests.apps.monitored", pool=pool, concurrency=2, env=env).ready()


def statuses(events: list[dict[str, Any]]) -> list[str]:
    return [event["status"] for event in events]


def sender(url: str) -> Celery:
    return Celery("test", broker=url, set_as_current=False)


# -- a worker that dies --------------------------------------------------------------


def test_kill_9_then_the_broker_delivers_again(
    rabbit_vhost: RabbitVhost, redis_db: RedisDB, project: Project
) -> None:
    """With Redis: ``tests/acceptance/test_monitors.py``."""
    url = rabbit_vhost.url
    with sender(url) as app:
        with start(url, redis_db.backend_url, project.dsn) as worker:
            app.send_task("worker_killed")
            worker.wait_line("started worker_killed")
            project.wait(lambda found: "worker_killed" in found)
            worker.signal(signal.SIGKILL, group=True)
            worker.wait()
        with start(url, redis_db.backend_url, project.dsn) as worker:
            found = project.wait(lambda found: len(found["worker_killed"]) > 2)
            worker.term()
            assert worker.wait() == 0
    events = found["worker_killed"]
    assert statuses(events) == ["in_progress", "in_progress", "ok"]
    assert len({event["check_in_id"] for event in events}) == 1
    # The whole run's, the time between the two workers included.
    assert events[-1]["duration"] > 0.3


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("interrupted", "prefork"),
        ("interrupted", "gevent"),
        ("given_up", "prefork"),
        ("given_up", "threads"),
        ("given_up", "gevent"),
    ],
)
def test_closed_at_the_interruption(
    name: str, pool: str, redis_db: RedisDB, project: Project
) -> None:
    on = {"CONF_graceful_monitor_on_interrupt": "'error'", "pool": pool}
    with sender(redis_db.url) as app:
        with start(redis_db.url, redis_db.backend_url, project.dsn, **on) as worker:
            app.send_task(name)
            worker.wait_line(f"started {name}")
            worker.term()
            assert worker.wait() == 0
        with start(redis_db.url, redis_db.backend_url, project.dsn, **on) as worker:
            found = project.wait(lambda found: len(found[name]) > 3)
            worker.term()
            assert worker.wait() == 0
    events = found[name]
    assert statuses(events) == ["in_progress", "error", "in_progress", "ok"]
    ids = [event["check_in_id"] for event in events]
    assert ids[0] == ids[1] != ids[2] == ids[3]


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_heartbeats(pool: str, redis_db: RedisDB, project: Project, tmp_path: Path) -> None:
    """While it runs, and through the drain."""
    gate = tmp_path / "gate"
    with sender(redis_db.url) as app:
        env = {"HEARTBEAT": "0.4", "CONF_graceful_hard_deadline": "17.0"}
        with start(redis_db.url, redis_db.backend_url, project.dsn, pool=pool, **env) as worker:
            app.send_task("beating", [str(gate)])
            worker.wait_line("started beating")
            project.wait(lambda found: len(found.get("beating", ())) > 1)
            worker.term()
            before = len(project.check_ins()["beating"])
            project.wait(lambda found: len(found["beating"]) > before + 2)
            gate.touch()
            assert worker.wait() == 0
            assert worker.count("finished beating") == 1
    events = project.check_ins()["beating"]
    assert statuses(events) == ["in_progress"] * (len(events) - 1) + ["ok"]
    assert len({event["check_in_id"] for event in events}) == 1
    # A start, one each 0.4 s, an end.
    assert len(events) <= 4 + events[-1]["duration"] / 0.4


def test_no_heartbeat_after_the_end(app: Celery, pings: HealthchecksServer) -> None:
    """Neither of a run that ended in this process, nor of one that ends in a child."""
    app.conf.graceful_healthchecks_url = pings.url
    dispatch = monitors_of(app).dispatch
    worker_state.attach(Board.create())
    try:
        here, there = run_of(app, "here"), run_of(app, "there")
        for run in (here, there):
            dispatch.start(run)
            dispatch.heartbeat(run)
        dispatch.wait(TIMEOUT)
        dispatch.finish(here, "ok")
        there.pid = os.getpid() + 1
        assert worker_state.board.value is not None
        worker_state.board.value.set_ended(there.pid, f"there\n{there.run}")
        dispatch.heartbeat(here)
        dispatch.heartbeat(there)
        dispatch.wait(TIMEOUT)
        dispatch.start(here)  # a retry
        dispatch.heartbeat(here)
        dispatch.wait(TIMEOUT)
    finally:
        worker_state.detach()
    seen = [(slug, what) for slug, what, _ in pings.wait(7)]
    assert [what for slug, what in seen if slug == "here"] == ["start"] * 2 + ["success"] + [
        "start"
    ] * 2
    assert [what for slug, what in seen if slug == "there"] == ["start"] * 2


def test_the_end_waits_for_a_heartbeat_on_its_way(app: Celery, pings: HealthchecksServer) -> None:
    app.conf.graceful_healthchecks_url = pings.url
    board = Board.create()
    worker_state.attach(board)
    try:
        board.beat(True)  # as the main process does, around a heartbeat
        dispatch = monitors_of(app).dispatch
        dispatch.finish(run_of(app, "child"), "ok")
        dispatch.wait(0.3)
        assert pings.pings == []
        board.beat(False)
        assert pings.wait(1)[0][:2] == ("child", "success")
    finally:
        worker_state.detach()


@pytest.mark.parametrize(
    ("headers", "closed", "asks"),
    [
        ({}, 0, []),
        ({"retries": 1}, 0, ["checkin_open"]),
        ({"delivery_info": {"redelivered": True}}, 0, ["checkin_open"]),
        ({STAMP: {"run": "that of another task"}}, 0, ["checkin_open"]),
        # The next run must not report to a check-in that was closed.
        ({"retries": 1}, 1, ["checkin_open", "UNLINK"]),
    ],
)
def test_a_short_run_asks_the_store_once(
    app: Celery,
    redis_db: RedisDB,
    pings: HealthchecksServer,
    headers: dict[str, Any],
    closed: int,
    asks: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not at all where nobody can have begun with it before."""
    monkeypatch.setattr(dispatch, "TOGETHER", TIMEOUT)  # however long the end takes to come
    app.conf.update(graceful_healthchecks_url=pings.url, graceful_store=redis_db.url)
    app.task(base=GracefulTask, name="short", shared=False, monitor="short")(nothing)
    monitors, key = monitors_of(app), "graceful:run:short:id"
    if closed:
        redis_db.client.hset(key, "closed", closed)
    run, asked = monitors.of_run(app.tasks["short"], "id", headers), []
    assert run is not None
    store = find_store(app)
    assert store is not None
    for way in ("run", "execute"):
        monkeypatch.setattr(store, way, partial(_and_note, getattr(store, way), asked))
    monitors.dispatch.start(run)
    monitors.dispatch.finish(run, "ok")
    monitors.dispatch.wait(TIMEOUT)
    assert [what for _, what, _ in pings.wait(2)] == ["start", "success"]
    assert run.number == closed
    assert not redis_db.client.exists(key)
    assert asked == asks


def _and_note(ask: Any, asked: list[str], what: str, *args: Any, **options: Any) -> Any:
    asked.append(what)
    return ask(what, *args, **options)


# -- heartbeats, by the clock --------------------------------------------------------


def run_of(app: Celery, slug: str, **fields: Any) -> Any:
    return monitors_of(app).of_block(Monitor(slug, **fields))


def nothing() -> None:
    """The body of tasks that are not run."""


@pytest.fixture
def app() -> Iterator[Celery]:
    with Celery("monitors", broker="memory://", set_as_current=False) as app:
        app.conf.graceful_monitor_timeout = TIMEOUT  # one that is busy is not away
        Graceful(app)
        yield app


@pytest.mark.parametrize(
    ("max_runtime", "seconds"), [(None, 600), (1, 60), (3, 60), (30, 600), (10080, 201600)]
)
def test_interval(app: Celery, max_runtime: int | None, seconds: float) -> None:
    assert interval_of(run_of(app, "x", max_runtime=max_runtime)) == seconds


def test_heartbeats_stay_below_the_servers_limit(app: Celery) -> None:
    runs = [run_of(app, "many", max_runtime=3) for _ in range(5)]
    runs.append(run_of(app, "other", max_runtime=9))
    sent: list[tuple[float, Any]] = []
    now = 0.0
    beats = Heartbeats(lambda: runs, lambda run: sent.append((now, run)))
    while now < 600:
        wait = beats.step(now)
        assert wait is not None
        now += max(wait, 1.0)
    for minute in range(0, 540, 10):
        many = [r for at, r in sent if minute <= at < minute + 60 and r.slug == "many"]
        assert len(many) <= 3
    assert {run for _, run in sent} == set(runs), "each has its turn"
    assert len([run for _, run in sent if run.slug == "other"]) == 3
    runs.clear()
    assert beats.step(now) is None


# -- peers that are away -------------------------------------------------------------


class Peer:
    """A server that behaves badly: ``refuses``, is a ``black_hole``, or is at its ``limit``."""

    def __init__(self, how: str) -> None:
        self.socket = socket.socket()
        self.socket.bind((LOOPBACK, 0))
        self.dsn = f"http://public@{LOOPBACK}:{self.socket.getsockname()[1]}/1"
        self.kept: list[socket.socket] = []
        if how != "refuses":
            self.socket.listen(100)
            threading.Thread(target=self._serve, args=(how,), daemon=True).start()

    def _serve(self, how: str) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.kept.append(connection)
            if how == "limit":
                connection.recv(65536)
                connection.sendall(
                    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 60\r\n"
                    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
                )
                connection.shutdown(socket.SHUT_WR)
                with suppress(OSError):
                    while connection.recv(65536):  # else what comes now resets the connection
                        pass
                connection.close()

    def close(self) -> None:
        self.socket.close()
        for connection in self.kept:
            connection.close()


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("refuses", "does not answer"),
        ("black_hole", "does not answer"),
        ("limit", "dropped, not sent to sentry: Sentry's rate limit"),
    ],
)
def test_a_peer_that_is_away(pool: str, how: str, says: str, redis_db: RedisDB) -> None:
    peer = Peer(how)
    with (
        sender(redis_db.url) as app,
        start(
            redis_db.url,
            redis_db.backend_url,
            peer.dsn,
            pool=pool,
            CONF_graceful_monitor_timeout="1.0",
        ) as worker,
    ):
        began = time.monotonic()
        for _ in range(60):
            app.send_task("success")
        worker.wait_line("success.* succeeded", 60)
        took = time.monotonic() - began
        app.send_task("interrupted")
        worker.wait_line("started interrupted")
        worker.term()
        assert worker.wait() == 0
        print(f"{pool} {how}: 60 tasks {took:.2f} s, drain {worker.took:.2f} s")
        # A report may take a second, and a task waits for it in a pool's child alone: in each
        # of the two once. Thirty would be 30 s.
        assert took < 25.0
        assert worker.took < GRACE
        processes = 3 if pool == "prefork" else 1
        assert 1 <= worker.count(says) <= processes, "said once by each process"
        assert worker.count("Traceback") == 0
    peer.close()


def test_what_before_send_drops_is_said_once(redis_db: RedisDB, project: Project) -> None:
    with (
        sender(redis_db.url) as app,
        start(redis_db.url, redis_db.backend_url, project.dsn, pool="threads", DROP="1") as worker,
    ):
        for _ in range(3):
            app.send_task("success")
        worker.wait_line("Task success.* succeeded", 3)
        worker.term()
        assert worker.wait() == 0
        assert worker.count("dropped, not sent to sentry: before_send") == 1
    assert project.check_ins() == {}


# -- Healthchecks --------------------------------------------------------------------


def test_healthchecks(redis_db: RedisDB, pings: HealthchecksServer) -> None:
    url = {"CONF_graceful_healthchecks_url": repr(pings.url)}
    with (
        sender(redis_db.url) as app,
        start(redis_db.url, redis_db.backend_url, "", **url) as worker,
    ):
        for name in ("success", "failure", "plain_retry"):
            app.send_task(name)
        seen = pings.wait(8)
        worker.term()
        assert worker.wait() == 0
    rids: dict[str, set[str]] = {}
    whats: dict[str, list[str]] = {}
    for slug, what, rid in seen:
        rids.setdefault(slug, set()).add(rid)
        whats.setdefault(slug, []).append(what)
    whats["plain_retry"].remove("log")  # another child may have begun the next try before it
    assert whats == {
        "success": ["start", "success"],
        "failure": ["start", "fail"],
        "plain_retry": ["start", "start", "success"],
    }
    assert all(len(some) == 1 for some in rids.values())
    assert any("ValueError('on purpose')" in body for body in pings.bodies)


class Broken:
    """A reporter whose server is never there."""

    name = "broken"

    def __init__(self, app: Celery) -> None:
        self.tried = 0

    def start(self, report: Report) -> None:
        self.tried += 1
        raise ConnectionError("on purpose")

    heartbeat = finish = start


def test_one_that_is_away_holds_up_no_other(
    app: Celery, pings: HealthchecksServer, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    made: list[Broken] = []

    class Point:
        @staticmethod
        def load() -> Any:
            return lambda app: made.append(Broken(app)) or made[-1]

    monkeypatch.setattr(dispatch, "_entry_points", lambda: {"broken": Point})
    app.conf.graceful_monitor_reporters = ["broken", "healthchecks"]
    app.conf.graceful_healthchecks_url = pings.url
    with checkin("here", app=app):
        pass
    assert [what for _, what, _ in pings.wait(2)] == ["start", "success"]
    # It has a thread of its own, which may come later.
    wait_until(lambda: made[0].tried > 1 and "broken does not answer" in caplog.text, "it tries")
    assert len([r for r in caplog.records if "broken does not answer" in r.message]) == 1


class Slow:
    """A reporter whose server answers when it may."""

    name = "slow"
    gate = threading.Event()
    told: ClassVar[list[str]] = []

    def __init__(self, app: Celery) -> None: ...

    def start(self, report: Report) -> None:
        assert self.gate.wait(TIMEOUT)
        self.told.append(report.slug)

    heartbeat = finish = start


@pytest.mark.parametrize("base", [celery.Task, GracefulTask])
def test_a_retry_is_sent_when_its_start_was_told(
    base: type, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next try may begin, and end, at once: a start that comes after that is never closed."""

    class Point:
        load = staticmethod(lambda: Slow)

    monkeypatch.setattr(dispatch, "_entry_points", lambda: {"slow": Point})
    app.conf.graceful_monitor_reporters = ["slow"]
    Slow.gate.clear()
    Slow.told.clear()
    told_before: list[str] = []

    @app.task(name="again", bind=True, base=base, max_retries=3)
    def again(self: Any) -> None:
        threading.Timer(0.3, Slow.gate.set).start()
        raise self.retry(countdown=0)

    def published(headers: Any, **_: Any) -> None:
        if headers["id"] == "id-of-again":
            told_before.extend(Slow.told)

    Graceful(app).monitor("again", "again")
    again.__trace__ = build_tracer("again", again, app=app)
    trace_with_check_in(again)
    after_task_publish.connect(published)
    try:
        request = {"id": "id-of-again", "task": "again", "retries": 0, "is_eager": False}
        again.__trace__("id-of-again", [], {}, request)
    finally:
        after_task_publish.disconnect(published)
    assert told_before == ["again"]


def test_healthchecks_by_its_own_url(app: Celery, pings: HealthchecksServer) -> None:
    app.conf.graceful_monitor_reporters = ["healthchecks"]
    with checkin(Monitor("here", ping_url=f"{pings.url}/some-uuid"), app=app):
        pass
    with pytest.raises(KeyError), checkin(Monitor("here", ping_url=f"{pings.url}/u2"), app=app):
        raise KeyError
    seen = pings.wait(4)
    assert [(slug, what) for slug, what, _ in seen] == [
        ("some-uuid", "start"),
        ("some-uuid", "success"),
        ("u2", "start"),
        ("u2", "fail"),
    ]


@pytest.mark.parametrize(("status", "text"), [(404, b"not found"), (200, b"OK (not found)")])
def test_healthchecks_that_knows_it_not(
    app: Celery, pings: HealthchecksServer, status: int, text: bytes, caplog: Any
) -> None:
    pings.status, pings.text = status, text
    app.conf.graceful_healthchecks_url = pings.url
    with checkin("unknown", app=app):
        pass
    pings.wait(2)
    monitors_of(app).dispatch.wait(TIMEOUT)
    assert len([r for r in caplog.records if "dropped, not sent to healthchecks" in r.message]) == 1


# -- checkin -------------------------------------------------------------------------


@pytest.fixture
def pinged(app: Celery, pings: HealthchecksServer) -> Celery:
    app.conf.graceful_healthchecks_url = pings.url
    return app


def test_checkin_nested_and_in_threads(pinged: Celery, pings: HealthchecksServer) -> None:
    block = checkin("block", app=pinged)
    inside = threading.Barrier(3)

    def work() -> None:
        with block:
            inside.wait(TIMEOUT)

    with block, block:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        inside.wait(TIMEOUT)
        for thread in threads:
            thread.join(TIMEOUT)
    seen = pings.wait(8)
    assert sorted(what for _, what, _ in seen) == ["start"] * 4 + ["success"] * 4
    assert len({rid for _, _, rid in seen}) == 4


def test_checkin_left_in_another_context(pinged: Celery, pings: HealthchecksServer) -> None:
    def stepped() -> Iterator[int]:
        with checkin("stepped", app=pinged):
            yield 1

    async def failing() -> AsyncIterator[int]:
        with checkin("failing", app=pinged):
            yield 1
            raise KeyError("the real one")

    async def drive() -> None:
        numbers = stepped()
        while await asyncio.to_thread(next, numbers, None):
            pass
        others = failing()
        await asyncio.create_task(anext(others))  # type: ignore[arg-type]
        with pytest.raises(KeyError, match="the real one"):
            await asyncio.create_task(anext(others))  # type: ignore[arg-type]

    asyncio.run(drive())
    seen = pings.wait(4)
    assert len({rid for _, _, rid in seen}) == 2
    assert sorted((slug, what) for slug, what, _ in seen) == [
        ("failing", "fail"),
        ("failing", "start"),
        ("stepped", "start"),
        ("stepped", "success"),
    ]


def test_checkin_shared_with_another_context(pinged: Celery, pings: HealthchecksServer) -> None:
    """Each is closed once, whichever of them is left first."""
    shared = checkin("shared", app=pinged)
    contexts = [copy_context() for _ in range(3)]
    with shared:
        for context in contexts:
            context.run(shared.__enter__)
        copy_context().run(shared.__exit__, None, None, None)
        contexts[1].run(shared.__exit__, None, None, None)
        contexts[0].run(shared.__exit__, None, None, None)
    contexts[2].run(shared.__exit__, None, None, None)
    seen = pings.wait(8)
    assert len({rid for _, what, rid in seen if what == "success"}) == 4
    shared.__exit__(None, None, None)  # once too often


def test_checkin_forgets_what_was_left_elsewhere(pinged: Celery) -> None:
    """In a context that lives for as long as the process, they would add up."""

    def steps() -> Iterator[None]:
        with checkin("steps", app=pinged):
            yield

    def all_of_them() -> None:
        for _ in range(3):
            some = steps()
            next(some)
            Context().run(next, some, None)
        assert len(block._open.get()) == 1

    Context().run(all_of_them)


class Unspeakable(Exception):
    def __repr__(self) -> str:
        raise ValueError("no words for it")


def test_checkin_of_what_has_no_words(pinged: Celery, pings: HealthchecksServer) -> None:
    with pytest.raises(Unspeakable), checkin("end", app=pinged):
        raise Unspeakable
    assert [what for _, what, _ in pings.wait(2)] == ["start", "fail"]


def test_checkin_on_functions(pinged: Celery, pings: HealthchecksServer) -> None:
    @checkin("function", app=pinged)
    def double(number: int) -> int:
        return 2 * number

    @checkin("coroutine", app=pinged)
    async def later(number: int) -> int:
        await asyncio.sleep(0.01)
        return 2 * number

    async def both() -> list[int]:
        return await asyncio.gather(later(1), later(2))

    assert double(2) == 4
    assert asyncio.run(both()) == [2, 4]
    seen = pings.wait(6)
    assert len({rid for slug, _, rid in seen if slug == "coroutine"}) == 2
    assert [what for slug, what, _ in seen if slug == "function"] == ["start", "success"]
    with pytest.raises(TypeError, match="generator"):

        @checkin("generator", app=pinged)
        def many() -> Iterator[int]:
            yield 1


@pytest.mark.parametrize(
    ("exc", "what"),
    [(SystemExit(0), "success"), (SystemExit(1), "fail"), (KeyboardInterrupt(), "fail")],
)
def test_checkin_and_the_end(
    pinged: Celery, pings: HealthchecksServer, exc: BaseException, what: str
) -> None:
    with pytest.raises(type(exc)), checkin("end", app=pinged):
        raise exc
    assert pings.wait(2)[-1][1] == what


def test_a_script_sends_before_it_ends(pings: HealthchecksServer) -> None:
    code = f"""
        from celery import Celery
        from celery_graceful import Graceful, checkin
        from celery_graceful.monitors import outbox
        outbox.LAST_WAIT = {TIMEOUT}  # one that is busy is not away
        app = Celery("script", broker="memory://")
        app.conf.graceful_exit_timeout = app.conf.graceful_monitor_timeout = {TIMEOUT}
        app.conf.graceful_healthchecks_url = {pings.url!r}
        Graceful(app)
        with checkin("script"):
            pass
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(argv, env=env, timeout=TIMEOUT, check=False).returncode == 0
    assert [what for _, what, _ in pings.wait(2)] == ["start", "success"]


# -- eager ---------------------------------------------------------------------------


def test_eager(pinged: Celery, pings: HealthchecksServer) -> None:
    @pinged.task(base=GracefulTask, bind=True, monitor="eager", max_retries=1, shared=False)
    def eager(self: Any, how: str) -> None:
        if how == "ignore":
            raise Ignore
        if how == "retry" and not self.request.retries:
            raise self.retry(countdown=0)
        if how == "fail":
            raise ValueError("on purpose")

    for how in ("succeed", "retry", "ignore", "fail"):
        eager.apply([how])
    with pytest.raises(ValueError, match="on purpose"):
        eager.apply(["fail"], throw=True)
    seen = pings.wait(10)
    assert [what for _, what, _ in seen] == [
        *["start", "success"] * 3,
        *["start", "fail"] * 2,
    ]
    assert len({rid for _, _, rid in seen}) == 5


@pytest.mark.parametrize(("said", "end"), [(None, "fail"), ("ok", "success"), ("error", "fail")])
def test_eager_and_interrupted(
    said: str | None, end: str, pinged: Celery, pings: HealthchecksServer
) -> None:
    @pinged.task(base=GracefulTask, shared=False, monitor=Monitor("eager", on_interrupt=said))
    def eager() -> None:
        raise Interrupted

    assert eager.apply().state == INTERRUPTED
    assert [what for _, what, _ in pings.wait(2)] == ["start", end]


# -- what is refused, and what others call -------------------------------------------


def test_slugs_that_collide(app: Celery) -> None:
    app.task(base=GracefulTask, name="a", shared=False, monitor="Nightly export")(nothing)
    app.task(base=GracefulTask, name="b", shared=False, monitor="nightly-export")(nothing)
    with pytest.raises(SettingsError, match="task a and task b"):
        monitors_of(app).check()


def test_entries_stop_neither_worker_nor_beat(redis_db: RedisDB, project: Project) -> None:
    """Whatever they are called, and also those that come later: each has a monitor of its own."""
    names = [*entries.AT_START, *entries.LATER]
    env = {"BROKER_URL": redis_db.url, "SENTRY_DSN": project.dsn}
    argv = [*CELERY, "-A", "tests.apps.entries", "beat", "--pidfile="]
    argv += ["-S", "tests.apps.entries:AddsLater"]
    with Worker("tests.apps.entries", pool="threads", env=env).ready() as worker:
        beat = subprocess.Popen(
            argv,
            env={**environ(), **env},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            for name in names:
                worker.wait_line(rf">> [\d.]+ ran {re.escape(name)}$", 2)
        finally:
            beat.kill()  # a SIGTERM raises SystemExit anywhere, and redis-py and Sentry swallow it
            log = beat.communicate(timeout=TIMEOUT)[1]
        project.wait(lambda found: len(found) >= len(names))  # at its end there is little time
        worker.term()
        assert worker.wait() == 0
    assert "Traceback" not in log
    slugs = project.check_ins()
    assert len(slugs) == len(names), sorted(slugs)
    assert {"nightlyexport", "nightly-export"} < slugs.keys()
    for name in names:
        assert log.count(f"The monitor of beat entry {name!r} ") <= 1
    assert log.count("The monitor of beat entry ") == len(names) - 2
    assert "nobody reports" not in log + worker.output


def test_closing_at_interruptions_needs_a_store(app: Celery) -> None:
    app.conf.graceful_monitor_on_interrupt = "error"
    with pytest.raises(SettingsError, match="needs a store"):
        monitors_of(app).check()


def test_reporters_that_nobody_knows(app: Celery) -> None:
    app.conf.graceful_monitor_reporters = ["pigeon"]
    with pytest.raises(SettingsError, match=r"pigeon.*healthchecks, sentry"):
        monitors_of(app).check()


def test_a_worker_says_so_at_its_start(redis_db: RedisDB) -> None:
    env = {"BROKER_URL": redis_db.url, "CONF_graceful_monitor_reporters": "['pigeon']"}
    with Worker("tests.apps.monitored", env=env) as worker:
        assert worker.wait() != 0
        assert worker.count("pigeon.* cannot be used") == 1
        assert worker.count(r"CRITICAL/MainProcess\] graceful_monitor_reporters") == 1
        assert worker.count("Traceback") == 0


SILENT = [
    ({"graceful_monitor_beat": True}, "graceful_monitor_beat: nobody reports"),
    ({"graceful_monitor_reporters": ["sentry"]}, "names sentry, which reports nothing: no Sentry"),
    ({"graceful_monitor_reporters": ["healthchecks"]}, "names healthchecks, .* is not set, and no"),
]


@pytest.mark.parametrize(("settings", "says"), SILENT)
def test_what_would_report_nothing_is_said(
    app: Celery, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], says: str
) -> None:
    say_what_is_silent(monitors_of(app))
    assert not own_records(caplog)
    app.conf.update(settings)
    say_what_is_silent(Monitors(app))
    assert [record.levelname for record in own_records(caplog)] == ["WARNING"]
    assert re.search(says, caplog.text)


def test_monitors_of_tasks_and_nobody_who_reports(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    app.task(base=GracefulTask, name="a", shared=False, monitor="nightly")(nothing)
    say_what_is_silent(monitors_of(app))
    assert "the monitors nightly: nobody reports" in caplog.text


def test_a_monitor_for_a_task_that_is_not_there(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    app.task(name="shop.export", shared=False)(nothing)
    for name in ("shop.export", "shop.exprot", "elsewhere"):
        Graceful(app).monitor(name, "nightly")
    say_who_is_unknown(monitors_of(app))
    assert [record.getMessage() for record in own_records(caplog)] == [
        "Graceful.monitor('shop.exprot', 'nightly'): this worker has no task of that name, "
        "did you mean 'shop.export'?",
        "Graceful.monitor('elsewhere', 'nightly'): this worker has no task of that name",
    ]


def test_apps_without_a_name_share_no_monitors() -> None:
    one, other = (Celery(broker="memory://", set_as_current=False) for _ in range(2))
    Graceful(one).monitor("export", "ones")
    Graceful(other)
    assert set(named_monitors.named(one)) == {"export"}
    assert set(named_monitors.named(other)) == set()
    copy = pickle.loads(pickle.dumps(one))  # as a child that is spawned gets it
    assert set(named_monitors.named(copy)) == {"export"}


@pytest.mark.parametrize("task", [None, 5, "", object()])
def test_what_is_no_task_has_no_monitor(app: Celery, task: Any) -> None:
    with pytest.raises(SettingsError, match=r"Graceful.monitor = .*give a task"):
        Graceful(app).monitor(task, "nightly")


@pytest.fixture
def sentry_with_beat(project: Project) -> Iterator[None]:
    """Sentry's own integration watches beat, in this process."""
    receivers = {
        signal: list(signal.receivers)
        for signal in (celery_signals.task_success, celery_signals.task_failure)
    }
    with sentry_sdk.isolation_scope() as scope:
        integration = CeleryIntegration(monitor_beat_tasks=True)
        client = sentry_sdk.Client(dsn=project.dsn, integrations=[integration])
        scope.set_client(client)
        yield
        client.close(timeout=0)
    for each, before in receivers.items():
        each.receivers[:] = before
        each.sender_receivers_cache.clear()


@pytest.mark.parametrize("ours", [True, False])
def test_sentrys_own_check_ins_are_left_to_it_where_nobody_here_closes_them(
    app: Celery, sentry_with_beat: None, ours: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf.update(
        graceful_monitor_beat=True,
        graceful_monitor_exclude=["cleanup-*"],
        graceful_monitor_reporters=["sentry"] if ours else ["healthchecks"],
        graceful_healthchecks_url="http://127.0.0.1:9/key",
    )
    monitors = Monitors(app)
    theirs = set(_receivers(celery_signals.task_success))
    silence_sentry(monitors)
    left = set(_receivers(celery_signals.task_success))
    assert ("crons_task_success" in left) is not ours
    assert "crons_task_success" in theirs
    say_what_is_silent(monitors)
    (record,) = own_records(caplog)
    says = "exclude does not hold for those" if ours else "by itself, celery_graceful to health"
    assert says in record.getMessage()


def test_the_name_of_a_monitor_is_said_where_it_is_used(
    app: Celery, sentry_with_beat: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Sentry's integration opens check-ins under names of its own, of entries that it knows."""
    app.task(name="task", shared=False)(nothing)
    app.conf.update(
        graceful_monitor_beat=True,
        beat_schedule={
            "shop.often": {"task": "task", "schedule": 5.0},
            "shop.nightly": {"task": "task", "schedule": crontab(minute=0, hour=4)},
            "shop.both": {"task": "task", "schedule": crontab(day_of_month=1, day_of_week=1)},
        },
    )
    scheduler = Scheduler(app)
    scheduler.update_from_dict(app.conf.beat_schedule)
    beat.install(SimpleNamespace(scheduler=scheduler), celery_signals.beat_embedded_init)
    assert not own_records(caplog)
    for entry in list(scheduler.schedule.values()) * 2:
        scheduler.apply_entry(entry)
    said = [r.getMessage() for r in caplog.records if r.name.startswith("celery_graceful")]
    assert len(said) == 2
    assert "beat entry 'shop.often' is called shopoften-" in said[0]
    assert re.match("Monitor shopoften-.* without a schedule", said[1])


def test_a_task_of_two_entries_that_no_setting_names_has_no_one_schedule(app: Celery) -> None:
    """They come from a database, or by RedBeat; each is known when it has fired."""
    app.task(name="task", shared=False, base=GracefulTask, monitor="nightly")(nothing)
    scheduler = Scheduler(app)
    entries = {
        f"at {hour}": {"task": "task", "schedule": crontab(minute=0, hour=hour)} for hour in (4, 5)
    }
    scheduler.update_from_dict(entries)
    beat.install(SimpleNamespace(scheduler=scheduler), celery_signals.beat_embedded_init)
    sent: list[Any] = []

    def on_publish(headers: Any = None, **_: Any) -> None:
        sent.append(headers[STAMP].get("schedule"))

    celery_signals.before_task_publish.connect(on_publish)
    one, other = scheduler.schedule.values()
    for entry in (one, one, other, one, other):
        scheduler.apply_entry(entry)
    first = {"type": "crontab", "value": "0 4 * * *"}
    assert sent == [first, first, None, None, None]


def _receivers(signal: Any) -> list[str]:
    return [receiver.__name__ for receiver in signal._live_receivers(None)]


def test_a_monitor_for_a_task_of_others(pinged: Celery, pings: HealthchecksServer) -> None:
    task = pinged.task(name="theirs", shared=False)(nothing)
    Graceful(pinged).monitor("theirs", "ours")
    check_in = monitors_of(pinged).of_run(task, "some-id", {})
    assert check_in is not None
    close_dead(pinged, "theirs", "some-id", {})
    assert pings.wait(1) == [("ours", "fail", check_in.id)]
    close_dead(pinged, "unknown", "some-id", {})


# -- beat ----------------------------------------------------------------------------


def test_stops_under_a_beat(redis_db: RedisDB, project: Project) -> None:
    env = {
        **os.environ,
        "BROKER_URL": redis_db.url,
        "SENTRY_DSN": project.dsn,
        "MONITORS": "beat",
        "PYTHONPATH": str(ROOT),
    }
    argv = [*CELERY, "-A", "tests.apps.monitored", "beat"]
    argv += ["-S", "tests.apps.monitored:FireOften", "--pidfile="]
    beat = subprocess.Popen(
        argv, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for number in range(5):
            with start(
                redis_db.url, redis_db.backend_url, project.dsn, MONITORS="beat", pool="prefork"
            ) as worker:
                worker.wait_line("started ticking")
                if number == 4:
                    beat.kill()
                    beat.wait(TIMEOUT)
                    wait_until(lambda: not redis_db.client.llen("celery"), "all are fetched")
                    wait_until(lambda: not redis_db.client.keys("graceful:claims:*"), "and done")
                worker.term(group=bool(number % 2))
                assert worker.wait() == 0
    finally:
        beat.kill()
        beat.wait()
    runs: dict[str, list[str]] = {}
    for event in project.check_ins()["ticking"]:
        runs.setdefault(event["check_in_id"], []).append(event["status"])
    assert len(runs) >= 5
    for seen in runs.values():
        assert seen[-1] == "ok"
        assert seen.count("ok") == 1
        assert set(seen[:-1]) == {"in_progress"}
