"""Results that are stored later, of deliveries that are real: some of them never can be."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from celery.backends.base import Backend
from celery.backends.database import DatabaseBackend
from celery.states import SUCCESS

from celery_graceful.deliveries import late_results as module
from celery_graceful.deliveries.late_results import LateResults
from celery_graceful.runs.unstored import Unstored
from tests.servers import RedisServer
from tests.support.held import Held, held
from tests.support.workers import TIMEOUT, wait_until

UNSTORED = Unstored(SUCCESS, 7, None, [], True, False)
LOST = "[odd] came to (SUCCESS) could not be stored, and is lost: "


class Keeper:
    """Keeps results of tasks that run."""

    def __init__(self, bench: Held) -> None:
        self.bench, self.ended = bench, []
        self.late = LateResults(bench.ledger, lambda: None)

    def keep(self, name: str, *, acks_late: bool = True) -> None:
        request = self.bench.deliver(name, acks_late=acks_late)
        if not acks_late:
            request.mark_answered()
        assert self.late.keep(request, UNSTORED, partial(self.ended.append, name)) is acks_late

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


@pytest.mark.usefixtures("patient")
def test_the_end_of_a_worker(keeper: Keeper, caplog: pytest.LogCaptureFixture) -> None:
    """It stores what can be stored, and says how much is lost."""
    for name in ("one", "odd", "two"):
        keeper.keep(name, acks_late=False)
    keeper.late.end(TIMEOUT)
    assert keeper.is_stored("one")
    assert keeper.is_stored("two")
    assert "What 1 tasks came to could not be stored, and is lost with this worker" in caplog.text
