"""A task that adds a batch to its own, and is run again before all of that was sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery
from celery._state import _task_stack
from kombu.exceptions import OperationalError

from celery_graceful import Batch, BatchFinished, Interrupted
from celery_graceful.batches import adding
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.marks import BATCH, CALLBACK
from celery_graceful.batches.model import Adds, End, Outcome, State
from celery_graceful.batches.sending import CHUNK
from celery_graceful.deliveries.member_end import outcome_of
from celery_graceful.store.app_stores import find_store
from tests.conftest import RedisDB
from tests.integration.test_batch_sending import ids, make_app, sent, works
from tests.support.workers import TIMEOUT

HALF = CHUNK // 2


@pytest.fixture
def app(redis_db: RedisDB) -> Celery:
    return make_app(redis_db.url, result_backend=redis_db.backend_url)


@pytest.fixture
def outer(app: Celery) -> Batch:
    """A batch of three members, which have not run."""
    members = [app.tasks["sending.work"].si(n).set(task_id=f"adds-{n}") for n in range(3)]
    callback = app.tasks["sending.work"].si("outer")
    return Batch(app=app, on_complete=callback).apply_async(members)


@contextmanager
def run(app: Celery, outer: Batch, member: str = "adds-0", **request: Any) -> Iterator[None]:
    """As in a run of a member."""
    task = app.tasks["sending.work"]
    headers = {BATCH: f"{outer.id}/{member}"}
    _task_stack.push(task)
    task.push_request(**{"id": member, "headers": headers, **request})
    try:
        yield
    finally:
        task.pop_request()
        _task_stack.pop()


class Killed(BaseException):
    """In place of a kill: nothing of the task runs after it."""


def dies(app: Celery, numbers: range) -> Iterator[Any]:
    yield from works(app, numbers)
    raise Killed


def inner(app: Celery, members: Any, description: str = "inner", **options: Any) -> Batch:
    callback = app.tasks["sending.work"].si(description)
    batch = Batch(app=app, on_success=callback, description=description, **options)
    batch.add(members)
    return batch


def killed(app: Celery, outer: Batch, batch: Batch, member: str = "adds-0") -> None:
    with run(app, outer, member), pytest.raises(Killed):
        outer.add(batch)
    assert batch.status().state is State.SENDING


def added(app: Celery, outer: Batch, batch: Batch, member: str = "adds-0") -> Batch:
    with run(app, outer, member):
        outer.add(batch)
    assert batch.status().state is State.SENT
    return batch


def ledger_of(app: Celery) -> BatchLedger:
    return BatchLedger(find_store(app))  # type: ignore[arg-type]


def test_it_goes_on_with_what_it_has_begun(app: Celery, outer: Batch, redis_db: RedisDB) -> None:
    first = inner(app, dies(app, range(CHUNK + HALF)))
    killed(app, outer, first)
    some = ids(sent(redis_db))[3:]
    assert len(some) == CHUNK
    ledger_of(app).end([End(first.id, one, Outcome.SUCCEEDED) for one in some])
    second = added(app, outer, inner(app, works(app, range(2 * CHUNK))))
    assert second.id == first.id
    assert list(ledger_of(app).kids(outer.id)) == [first.id]
    status = second.status()
    assert (status.total, status.succeeded, outer.status().total) == (2 * CHUNK, CHUNK, 4)
    messages = ids(sent(redis_db))[3:]
    assert len(messages) == len(set(messages)) == 2 * CHUNK, "those that had ended are not sent"


def test_an_interruption_is_no_error(
    app: Celery, outer: Batch, caplog: pytest.LogCaptureFixture
) -> None:
    """The task goes on with it by itself."""

    def members() -> Iterator[Any]:
        yield from works(app, range(3))
        raise Interrupted

    caplog.set_level("INFO")
    with run(app, outer), pytest.raises(Interrupted):
        outer.add(inner(app, members()))
    (record,) = [one for one in caplog.records if "stays in state sending" in one.message]
    assert record.levelname == "INFO"
    assert "This task goes on with it if it is run again" in record.message


def test_a_callback_does_so_too(app: Celery, outer: Batch) -> None:
    ledger = ledger_of(app)
    ledger.end([End(outer.id, f"adds-{n}", Outcome.SUCCEEDED) for n in range(3)])
    request = {"id": "callback", "headers": {CALLBACK: f"{outer.id}/on_complete"}}
    first, second = inner(app, dies(app, range(3))), inner(app, works(app, range(3)))
    with run(app, outer, **request), pytest.raises(Killed):
        outer.add(first)
    with run(app, outer, **request):
        outer.add(second)
    assert (second.id, second.status().total) == (first.id, 3)


@pytest.mark.parametrize(
    "other",
    [{"description": "other"}, {"properties": {"month": "May"}}, {"members": 5}],
    ids=lambda other: next(iter(other)),
)
def test_one_that_is_not_like_it(app: Celery, outer: Batch, other: dict[str, Any]) -> None:
    """It is another one; not by its members, which come as they come."""
    first = inner(app, dies(app, range(3)))
    killed(app, outer, first)
    members = works(app, range(other.pop("members", 3)))
    second = added(app, outer, inner(app, members, **other))
    assert (second.id == first.id) is (not other)
    third = added(app, outer, inner(app, works(app, range(3))))
    assert (third.id == first.id) is bool(other)


def test_what_was_sent_is_done_with(app: Celery, outer: Batch) -> None:
    """A task that goes on behind it, at a checkpoint, means another one."""
    first = added(app, outer, inner(app, works(app, range(3))))
    killed(app, outer, second := inner(app, dies(app, range(2))))
    third = added(app, outer, inner(app, works(app, range(10, 12))))
    fourth = added(app, outer, inner(app, works(app, range(3))))
    assert third.id == second.id
    assert len({first.id, second.id, fourth.id}) == 3
    assert outer.status().total == 6
    assert not [
        field
        for key in app.backend.client.keys("graceful:batch:*")
        if app.backend.client.type(key) == b"hash"
        for field in app.backend.client.hkeys(key)
        if field.startswith(b"adding")
    ]


def test_what_another_member_adds_is_its_own(app: Celery, outer: Batch) -> None:
    first = inner(app, dies(app, range(3)))
    killed(app, outer, first)
    assert added(app, outer, inner(app, works(app, range(3))), "adds-1").id != first.id
    assert added(app, outer, inner(app, works(app, range(3)))).id == first.id


def test_what_is_inside_of_that(app: Celery, outer: Batch) -> None:
    def members(batch: Batch) -> Iterator[Any]:
        yield from works(app, range(2))
        yield batch

    deep = inner(app, dies(app, range(3)), "deep")
    first = inner(app, members(deep))
    killed(app, outer, first)
    again = inner(app, works(app, range(3)), "deep")
    second = added(app, outer, inner(app, members(again)))
    assert (second.id, again.id) == (first.id, deep.id)
    assert (second.status().total, again.status().state) == (3, State.SENT)


def test_it_fails_and_tries_again(app: Celery, outer: Batch, redis_db: RedisDB) -> None:
    """In the same run, or as a retry: what could not be sent is sent then."""
    away = make_app("redis://127.0.0.1:1/0", graceful_store=redis_db.url)
    broken = Batch.load(outer.id, app=away)
    first = inner(away, works(away, range(3)))
    with run(away, outer), pytest.raises(OperationalError):
        broken.add(first)
    second = added(app, outer, inner(app, works(app, range(3))))
    assert second.id == first.id
    assert len(ids(sent(redis_db))) == 3 + 3


def test_threads_of_one_run_add_their_own(app: Celery, outer: Batch) -> None:
    """Two that are alike: neither goes on with what the other one sends, and one is left over."""
    left = inner(app, dies(app, range(3)))
    killed(app, outer, left)
    both = threading.Barrier(2, timeout=TIMEOUT)
    made: list[Batch] = []

    def members(first: int) -> Iterator[Any]:
        yield from works(app, range(first, first + CHUNK))
        both.wait()
        yield from works(app, range(first + CHUNK, first + CHUNK + 2))

    def add(first: int) -> None:
        with run(app, outer):
            batch = inner(app, members(first))
            made.append(batch)
            outer.add(batch)

    threads = [threading.Thread(target=add, args=[first], daemon=True) for first in (0, 10_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    one, two = made
    assert one.id != two.id
    assert left.id in (one.id, two.id)
    assert [batch.status().state for batch in made] == [State.SENT] * 2
    assert sum(batch.status().total for batch in made) == 2 * CHUNK + 4


@contextmanager
def stands_still(app: Celery, outer: Batch) -> Iterator[tuple[Batch, list[BatchFinished]]]:
    """An inner batch of which half is sent by another run, which goes on at the end; its errors."""
    half, goes_on = threading.Event(), threading.Event()
    caught: list[BatchFinished] = []

    def members() -> Iterator[Any]:
        yield from works(app, range(CHUNK))
        half.set()
        assert goes_on.wait(TIMEOUT)
        yield from works(app, range(CHUNK, CHUNK + 5))

    batch = inner(app, members())

    def add() -> None:
        with run(app, outer, graceful_delivery="the first"):
            try:
                outer.add(batch)
            except BatchFinished as exc:
                caught.append(exc)

    thread = threading.Thread(target=add, daemon=True)
    thread.start()
    assert half.wait(TIMEOUT)
    yield batch, caught
    goes_on.set()
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def test_one_that_is_sent_by_another_run(
    app: Celery, outer: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which lives, and says so: it is left to it, and this one adds its own after a while."""
    monkeypatch.setattr(adding, "SAY_EVERY", 0.05)
    monkeypatch.setattr(adding, "SILENT", TIMEOUT)
    monkeypatch.setattr(adding, "PATIENCE", 0.5)
    other = stands_still(app, outer)
    with other as (first, caught), run(app, outer, graceful_delivery="the second"):
        second = inner(app, works(app, range(3)))
        outer.add(second)
        assert second.id != first.id
        assert first.status().state is State.SENDING
    assert caught == []
    assert (first.status().state, first.status().total) == (State.SENT, CHUNK + 5)


def test_who_was_taken_for_dead_is_told(
    app: Celery, outer: Batch, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was silent for too long. It sends nothing any more, and cannot say that all was sent."""
    monkeypatch.setattr(BatchLedger, "still_sends", lambda *args: None)
    monkeypatch.setattr(adding, "SILENT", 0.5)
    other = stands_still(app, outer)
    with other as (first, caught), run(app, outer, graceful_delivery="the second"):
        second = inner(app, dies(app, range(CHUNK)))
        with pytest.raises(Killed):
            outer.add(second)
        assert second.id == first.id
    (exc,) = caught
    assert exc.state == "sending"
    assert "another run of this task" in str(exc)
    assert (first.status().state, first.status().total) == (State.SENDING, CHUNK)
    assert len(set(ids(sent(redis_db)))) == 3 + CHUNK
    assert outcome_of(exc, acknowledged=False) is None, "the other one ends the member"


def test_a_run_that_another_worker_has_by_now(
    app: Celery, outer: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It adds nothing: nobody would send the rest when it is told to stop."""
    monkeypatch.setattr(adding, "holds_claim", lambda task: False)
    with run(app, outer):
        for one in (inner(app, works(app, range(3))), app.tasks["sending.work"].s(1)):
            with pytest.raises(BatchFinished, match="another run of this task, goes on"):
                outer.add(one)
    assert outer.status().total == 3


def test_an_answer_that_is_lost(app: Celery, outer: Batch) -> None:
    """Asked once more, it is the same one: one of its own, or that which it goes on with."""
    ledger = ledger_of(app)
    given = {"ttl": 60, "linger": 60, "parent": outer.id, "inside": "adds-0"}
    for run_of, sender in (("one", "a"), ("two", "b")):
        given |= {"sender": sender, "adds": Adds("adds-0", "like", run_of)}
        for _ in range(2):
            batch = ledger.create(f"kid-{run_of}", **given)
            assert batch is not None
            assert batch.id == "kid-one"
        ledger.still_sends("kid-one", sender, False)
    assert outer.status().total == 4


def test_resumed_by_hand_meanwhile(app: Celery, redis_db: RedisDB) -> None:
    """Of two producers of one batch the later one goes on."""
    batch = Batch(app=app)

    def members() -> Iterator[Any]:
        yield from works(app, range(CHUNK))
        Batch.load(batch.id, app=app).resume(works(app, range(CHUNK + 5)))
        yield from works(app, range(CHUNK, CHUNK + 5))

    with pytest.raises(BatchFinished, match="has been sent"):
        batch.apply_async(members())
    assert (batch.status().state, batch.status().total) == (State.SENT, CHUNK + 5)


def test_outside_of_tasks_each_is_new(app: Celery, redis_db: RedisDB) -> None:
    """Nobody can tell who is the same there."""
    outer, made = Batch(app=app), [inner(app, dies(app, range(3))) for _ in range(2)]

    def members() -> Iterator[Any]:
        for batch in made:
            with pytest.raises(Killed):
                Batch.load(outer.id, app=app).add(batch)
        yield from works(app, range(1))

    outer.apply_async(members())
    assert outer.status().total == 3
    assert len({batch.id for batch in made}) == 2
