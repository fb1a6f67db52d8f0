"""Results that are stored later, of deliveries that are real: some of them never can be."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery import Celery
from celery.backends.base import Backend
from celery.backends.database import DatabaseBackend
from celery.backends.redis import RedisBackend
from celery.exceptions import BackendStoreError, TaskRevokedError
from celery.states import FAILURE, REVOKED, SUCCESS
from celery.worker.request import Request

from celery_graceful import Graceful
from celery_graceful.deliveries import late_results as module
from celery_graceful.deliveries.late_results import LateResults
from celery_graceful.deliveries.stage import UNBEGUN
from celery_graceful.runs.unstored import Unstored
from tests.servers import RedisServer
from tests.support.held import Held, held
from tests.support.processes import free_port
from tests.support.workers import TIMEOUT, wait_until

UNSTORED = Unstored(SUCCESS, 7, None, [], True, False)
LOST = "[odd] came to (SUCCESS) could not be stored, and is lost: "


class OwnClient(RedisBackend):
    """It is told by a discovery where its server is."""

    @cached_property
    def client(self) -> Any:
        raise NotImplementedError


class Keeper:
    """Keeps results of tasks that run."""

    def __init__(self, bench: Held) -> None:
        self.bench, self.ended = bench, []
        self.late = LateResults(bench.ledger, lambda: None)

    def keep(self, name: str, unstored: Unstored = UNSTORED, *, acks_late: bool = True) -> None:
        request = self.bench.deliver(name, acks_late=acks_late)
        if not acks_late:
            request.mark_answered()
        assert self.late.keep(request, unstored, partial(self.ended.append, name)) is acks_late

    def have_ended(self, *names: str) -> bool:
        self.late.on_loop()
        return sorted(self.ended) == sorted(names)

    def is_stored(self, name: str) -> bool:
        return name == "odd" or self.bench.app.AsyncResult(name).state == SUCCESS


def redis_where_one_is_refused(start_server: Callable[..., RedisServer], path: Path) -> str:
    """There is something else under its key."""
    server = start_server(RedisServer)
    with server.client() as client:
        client.lpush("celery-task-meta-odd", "no result")
    return str(server.url())


def database_where_one_is_refused(start_server: Callable[..., RedisServer], path: Path) -> str:
    """By an error that a database that is away has, too."""
    url = f"db+sqlite:///{path}/results.db"
    with held(url) as bench:
        assert bench.app.backend.ResultSession()
    with sqlite3.connect(path / "results.db") as db:
        db.execute(
            "CREATE TRIGGER t BEFORE INSERT ON celery_taskmeta WHEN NEW.task_id = 'odd' "
            "BEGIN SELECT json(NEW.task_id); END"
        )
    return url


@pytest.fixture(
    params=[
        redis_where_one_is_refused,
        pytest.param(
            database_where_one_is_refused,
            marks=pytest.mark.skipif(
                DatabaseBackend.exception_safe_to_retry is Backend.exception_safe_to_retry,
                reason="Celery before 5.7",
            ),
        ),
    ],
    ids=["redis", "database"],
)
def keeper(
    request: pytest.FixtureRequest, start_server: Callable[..., RedisServer], tmp_path: Path
) -> Iterator[Keeper]:
    with held(request.param(start_server, tmp_path)) as bench:
        bench.app.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 0}}
        yield Keeper(bench)


@pytest.mark.usefixtures("patient")
def test_one_that_cannot_be_stored_keeps_no_other_and_is_given_up(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its message would be held for ever, and with it those of all that come later."""
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.01)
    monkeypatch.setattr(module, "TRIES", 2)
    keeper.late = LateResults(keeper.bench.ledger, lambda: None)
    names = ["odd", "one", "two", "three", "four"]
    for name in names:  # those that are stored show that the backend is there
        keeper.keep(name)
        wait_until(partial(keeper.is_stored, name), f"{name} is stored")
    wait_until(lambda: keeper.have_ended(*names), "all have ended")
    assert caplog.text.count(LOST) == 1


def test_what_is_revoked_and_held_does_not_begin(keeper: Keeper) -> None:
    """Nor is what has begun meanwhile held as if it had not: a thread may, at any time."""
    revoked = Unstored(REVOKED, TaskRevokedError("revoked"), None, [], True, False)
    waits, runs = keeper.bench.deliver("waits", runs=False), keeper.bench.deliver("runs")
    assert keeper.late.keep_if(waits, revoked, partial(keeper.ended.append, "waits"), UNBEGUN)
    assert keeper.late.keep_if(runs, revoked, partial(keeper.ended.append, "runs"), UNBEGUN) is None
    assert not waits.begin()
    assert waits.revoked()
    wait_until(lambda: keeper.have_ended("waits"), "it has ended")
    assert keeper.bench.app.AsyncResult("waits").state == REVOKED


@pytest.fixture
def on_redis(
    start_server: Callable[..., RedisServer], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Keeper]:
    """It closes the connection of who sends more than a megabyte."""
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.01)
    monkeypatch.setattr(module, "TRIES", 2)
    server = start_server(RedisServer)
    with server.client() as client:
        client.config_set("proto-max-bulk-len", "1mb")
    with held(str(server.url())) as bench:
        bench.app.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 0}}
        yield Keeper(bench)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("state", [SUCCESS, FAILURE])
def test_one_that_is_never_taken_is_a_failure(
    state: str, on_redis: Keeper, caplog: pytest.LogCaptureFixture
) -> None:
    """As in plain Celery: those who wait for it hear of that."""
    text = "x" * 3_000_000
    result = text if state == SUCCESS else ValueError(text)
    on_redis.keep("big", Unstored(state, result, None, [], True, False))
    wait_until(lambda: on_redis.have_ended("big"), "it has ended")
    stored = on_redis.bench.app.AsyncResult("big")
    assert stored.state == FAILURE
    assert isinstance(stored.result, BackendStoreError)
    assert caplog.text.count(f"[big] came to ({state}) cannot be stored, a FAILURE is in its") == 1
    assert "is lost" not in caplog.text


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("state", [SUCCESS, FAILURE])
def test_what_follows_one_that_is_stored_cannot_be_sent(
    state: str,
    on_redis: Keeper,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it came to is not lost by that."""
    on_redis.bench.app.conf.task_create_missing_queues = False
    backend = type(on_redis.bench.app.backend)
    after = on_redis.bench.app.signature("after", queue="unknown")
    store = backend.store_result

    def store_and_send(*args: Any, **kwargs: Any) -> Any:
        store(*args, **kwargs)
        after.apply_async()

    monkeypatch.setattr(backend, "store_result", store_and_send)
    result = 7 if state == SUCCESS else ValueError("no")
    on_redis.keep("one", Unstored(state, result, None, [], True, False))
    wait_until(lambda: on_redis.have_ended("one"), "it has ended")
    assert on_redis.bench.app.AsyncResult("one").state == state
    text = f"[one] came to ({state}) is stored, and what follows that could not be sent: "
    assert caplog.text.count(text) == 1
    assert "is lost" not in caplog.text


@pytest.mark.skipif(not hasattr(Request, "_success_was_stored"), reason="Celery before 5.7")
@pytest.mark.usefixtures("patient")
def test_what_a_child_had_stored_before_it_died(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do its errbacks run then."""
    bench, app = keeper.bench, keeper.bench.app
    app.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 0}}
    object.__setattr__(bench.host, "late_results", keeper.late)  # it is frozen
    bench.host.untold.keep.return_value = bench.ledger.post_mortems.child_died.return_value = False
    request = bench.deliver("one", acks_late=True, base=None)
    failed: list[object] = []
    monkeypatch.setattr(type(app.backend), "mark_as_failure", lambda *a, **_: failed.append(a))
    app.backend.mark_as_done("one", 7)
    monkeypatch.setattr(keeper.late, "refuses", lambda app: False)
    try:
        raise WorkerLostError("Worker exited prematurely")
    except WorkerLostError:
        request.on_failure(ExceptionInfo())
    assert request.tells_later
    wait_until(lambda: keeper.late.on_loop() or not request.tells_later, "it is told")
    assert failed == []
    assert app.AsyncResult("one").result == 7


@pytest.mark.parametrize("takes_others", [True, False])
@pytest.mark.usefixtures("patient")
def test_one_that_a_database_never_takes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    takes_others: bool,
) -> None:
    """It is a failure where that is taken; a copy of the database takes nothing for a while."""
    url = database_where_one_is_refused(None, tmp_path)  # type: ignore[arg-type]
    if DatabaseBackend.exception_safe_to_retry is Backend.exception_safe_to_retry:
        pytest.skip("Celery before 5.7")
    if takes_others:
        with sqlite3.connect(tmp_path / "results.db") as db:
            db.execute("DROP TRIGGER t")
            db.execute(
                "CREATE TRIGGER t BEFORE UPDATE ON celery_taskmeta WHEN NEW.status = 'SUCCESS' "
                "BEGIN SELECT json(NEW.task_id); END"
            )
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.01)
    monkeypatch.setattr(module, "TRIES", 3)
    tried: list[object] = []
    store = module._store
    monkeypatch.setattr(module, "_store", lambda kept: tried.append(kept) or store(kept))
    with held(url) as bench:
        keeper = Keeper(bench)
        keeper.keep("odd")
        if takes_others:
            wait_until(lambda: keeper.have_ended("odd"), "it has ended")
            assert isinstance(bench.app.AsyncResult("odd").result, BackendStoreError)
        else:
            wait_until(lambda: len(tried) > 12, "it is tried again and again")
            assert not keeper.have_ended("odd")
            with sqlite3.connect(tmp_path / "results.db") as db:
                db.execute("DROP TRIGGER t")
            wait_until(lambda: keeper.have_ended("odd"), "it has ended")
            assert bench.app.AsyncResult("odd").result == 7


def test_a_backend_with_a_client_of_its_own_is_not_asked(
    start_server: Callable[..., RedisServer],
) -> None:
    """Its parameters may lead elsewhere, to where nothing answers."""
    late = LateResults(None, lambda: None)  # type: ignore[arg-type]
    app = Celery(broker="memory://", set_as_current=False)
    app.conf.result_backend = f"{__name__}:OwnClient+redis://127.0.0.1:{free_port()}/0"
    Graceful(app)
    assert late.refuses(app) is None
    app = Celery(broker="memory://", set_as_current=False)
    app.conf.result_backend = f"redis://127.0.0.1:{free_port()}/0"
    Graceful(app)
    assert late.refuses(app) is False


@pytest.mark.usefixtures("patient")
def test_the_end_of_a_worker(keeper: Keeper, caplog: pytest.LogCaptureFixture) -> None:
    """It stores what can be stored, and says how much is lost."""
    for name in ("one", "odd", "two"):
        keeper.keep(name, acks_late=False)
    keeper.late.end(TIMEOUT)
    assert keeper.is_stored("one")
    assert keeper.is_stored("two")
    assert "What 1 tasks came to could not be stored, and is lost with this worker" in caplog.text
