"""A batch with a key of its user's: a producer that is run again goes on, or has nothing to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery, signals

from celery_graceful import Batch, BatchFinished
from celery_graceful.batches import adding
from celery_graceful.batches.adding import PATIENCE
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.model import End, Outcome, State
from celery_graceful.batches.sending import CHUNK
from celery_graceful.store.app_stores import find_store
from tests.conftest import ROOT, RedisDB
from tests.integration.test_adding_batches import Killed, dies
from tests.integration.test_batch_sending import ids, make_app, sent, works
from tests.support.workers import TIMEOUT, wait_until

KEY = "invoices 2026-05"
NAMED = f"graceful:batches:named:{KEY}"


@pytest.fixture
def app(redis_db: RedisDB) -> Celery:
    return make_app(redis_db.url, result_backend=redis_db.backend_url)


def ledger_of(app: Celery) -> BatchLedger:
    return BatchLedger(find_store(app))  # type: ignore[arg-type]


def keyed(app: Celery, **options: Any) -> Batch:
    return Batch(app=app, key=KEY, **options)


def begun(app: Celery, numbers: range) -> Batch:
    """One whose producer has died, and has said so."""
    batch = keyed(app)
    with pytest.raises(Killed):
        batch.apply_async(dies(app, numbers))
    assert batch.status().state is State.SENDING
    return batch


def nothing() -> Iterator[Any]:
    raise AssertionError("nobody has to make members")
    yield


def test_sent_once(app: Celery, redis_db: RedisDB) -> None:
    first = keyed(app, description="first").apply_async(works(app, range(3)))
    second = keyed(app, description="second")
    second.add(app.tasks["sending.work"].s(3))
    assert second.id != first.id
    assert second.apply_async(nothing()).id == first.id
    assert len(sent(redis_db)) == 3
    status = second.status()
    assert (status.state, status.total, status.key) == (State.SENT, 3, KEY)
    assert (status.description, status.summary()["key"]) == ("first", KEY)
    found = Batch.find(KEY, app=app)
    assert found is not None
    assert found.id == first.id
    assert Batch.find("another", app=app) is None
    other = Batch(app=app, key="another").apply_async(works(app, range(1)))
    assert other.id != first.id


def test_what_is_over_stays_as_it_is(app: Celery, redis_db: RedisDB) -> None:
    ledger = ledger_of(app)
    batch = keyed(app).apply_async(works(app, range(2)))
    ledger.end([End(batch.id, one, Outcome.SUCCEEDED) for one in ids(sent(redis_db))])
    assert batch.status().state is State.DONE
    for name in (f"graceful:batch:{batch.id}", NAMED):
        redis_db.client.pexpire(name, 5000)
    assert keyed(app).apply_async(nothing()).status().state is State.DONE
    for name in (f"graceful:batch:{batch.id}", NAMED):
        assert redis_db.client.pttl(name) <= 5000, "it lives no longer for being asked for"
    batch.drop()
    assert redis_db.client.keys("graceful:batch*") == []
    assert keyed(app).apply_async(works(app, range(2))).id != batch.id
    again = keyed(app)
    again.apply_async(nothing()).cancel()
    assert keyed(app).apply_async(nothing()).status().state is State.CANCELLED


def test_it_goes_on_where_a_producer_died(app: Celery, redis_db: RedisDB) -> None:
    first = begun(app, range(CHUNK + 1))
    second = keyed(app).apply_async(works(app, range(2 * CHUNK)))
    assert second.id == first.id
    assert (second.status().state, second.status().total) == (State.SENT, 2 * CHUNK)
    messages = ids(sent(redis_db))
    assert len(messages) == len(set(messages)) == 2 * CHUNK


@pytest.mark.parametrize(
    ("again", "gone", "new"),
    [
        ([-1, *range(2 * CHUNK)], 2 * CHUNK, 2 * CHUNK + 1),
        ([*range(7), *range(8, 2 * CHUNK)], 2 * CHUNK - 7, 2 * CHUNK - 8),
        ([*range(2 * CHUNK)][::-1], 2 * CHUNK, 2 * CHUNK),
        ([*range(2 * CHUNK - 1)], 0, 0),
        ([*range(2 * CHUNK + 1)], 0, 0),
        ([], 0, 0),
    ],
)
def test_members_that_are_not_those_of_before(
    app: Celery, caplog: pytest.LogCaptureFixture, again: list[int], gone: int, new: int
) -> None:
    """Their ids follow from their places: some run twice, and that is said."""
    begun(app, range(2 * CHUNK))
    caplog.clear()
    work = app.tasks["sending.work"]
    batch = keyed(app).apply_async(work.s(n) for n in again)
    said = [one.getMessage() for one in caplog.records if "given again" in one.getMessage()]
    assert batch.status().total == 2 * CHUNK + new + (len(again) > 2 * CHUNK and not new)
    if not new:
        assert said == []
        return
    (line,) = said
    assert f"{gone} members that are registered were not given again, and {new} are new" in line


def test_whose_ids_are_their_own_run_once_in_any_order(
    app: Celery, redis_db: RedisDB, caplog: pytest.LogCaptureFixture
) -> None:
    work = app.tasks["sending.work"]

    def members(numbers: list[int]) -> Iterator[Any]:
        return (work.s(n).set(task_id=f"inv-{n}") for n in numbers)

    def dying() -> Iterator[Any]:
        yield from members([*range(CHUNK + 3)])
        raise Killed

    with pytest.raises(Killed):
        keyed(app).apply_async(dying())
    keyed(app).apply_async(members([*range(-1, CHUNK + 5)][::-1]))
    assert sorted(ids(sent(redis_db))) == sorted(f"inv-{n}" for n in range(-1, CHUNK + 5))
    assert "given again" not in caplog.text


def test_what_members_have_added_has_not_to_be_given_again(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    batch = begun(app, range(CHUNK))
    ledger = ledger_of(app)
    ledger.add(batch.id, [("added", b"")], inside="callback:on_failure")
    ledger.create("inner", ttl=60, linger=60, parent=batch.id, inside="added")
    keyed(app).apply_async(works(app, range(CHUNK + 1)))
    assert batch.status().total == CHUNK + 3
    assert "are registered" not in caplog.text


def test_that_was_killed(app: Celery, redis_db: RedisDB) -> None:
    """It has not said so: it is waited for until it must be dead."""
    program = f"""
        import os, signal
        from celery_graceful import Batch
        from tests.integration.test_batch_sending import make_app, works

        app = make_app({redis_db.url!r}, result_backend={redis_db.backend_url!r})

        def members():
            yield from works(app, range({CHUNK + 1}))
            os.kill(os.getpid(), signal.SIGKILL)

        Batch(app=app, key={KEY!r}).apply_async(members())
    """
    argv, env = [sys.executable, "-c", textwrap.dedent(program)], {**os.environ, "PYTHONPATH": ROOT}
    died = subprocess.run(argv, cwd=ROOT, timeout=TIMEOUT, env=env)
    assert died.returncode == -signal.SIGKILL
    batch = keyed(app).apply_async(works(app, range(CHUNK + 2)))
    assert (batch.status().state, batch.status().total) == (State.SENT, CHUNK + 2)
    messages = ids(sent(redis_db))
    assert len(messages) == len(set(messages)) == CHUNK + 2


@pytest.mark.parametrize("key", [None, KEY])
def test_one_that_lives_says_so(app: Celery, monkeypatch: pytest.MonkeyPatch, key: Any) -> None:
    """However slowly its members come; and when it does not send any more."""
    monkeypatch.setattr(adding, "SAY_EVERY", 0.01)
    batch = Batch(app=app, key=key)

    def slow() -> Iterator[Any]:
        begun = batch.status().heard
        wait_until(lambda: batch.status().heard != begun, "it says that it is alive")
        yield from works(app, range(CHUNK))
        raise Killed

    with pytest.raises(Killed):
        batch.apply_async(slow())
    status = batch.status()
    assert (status.state, status.heard, status.is_left(status.moved)) == (
        State.SENDING,
        None,
        True,
    )


def test_many_that_are_sent_say_so_by_one_thread(app: Celery) -> None:
    def send(number: int) -> str:
        return Batch(app=app).apply_async(works(app, [number])).id

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(send, range(40)))) == 40
    saying = [one for one in threading.enumerate() if one.name == "graceful-sending"]
    assert len(saying) <= 1
    wait_until(lambda: not any(one.is_alive() for one in saying), "it ends with what it says")


def test_a_small_one_that_its_broker_holds_up_says_that_it_lives(
    app: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else another producer would send it, too."""
    monkeypatch.setattr(adding, "SAY_EVERY", 0.01)
    goes_on, is_at_it = threading.Event(), threading.Event()

    def holds_up(**_: object) -> None:
        is_at_it.set()
        assert goes_on.wait(TIMEOUT)

    signals.before_task_publish.connect(holds_up)
    try:
        with ThreadPoolExecutor(1) as pool:
            batch = keyed(app)
            sending = pool.submit(batch.apply_async, list(works(app, range(2))))
            try:
                assert is_at_it.wait(TIMEOUT)
                heard = batch.status().heard
                wait_until(lambda: batch.status().heard != heard, "it is heard of again")
            finally:
                goes_on.set()
            sending.result(TIMEOUT)
    finally:
        signals.before_task_publish.disconnect(holds_up)
    assert (batch.status().state, batch.status().total) == (State.SENT, 2)
    assert len(ids(sent(redis_db))) == 2


def test_one_that_lives_is_left_alone(
    app: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes."""
    monkeypatch.setattr(adding, "SILENT", TIMEOUT)
    monkeypatch.setattr(adding, "SAY_EVERY", 0.05)
    monkeypatch.setattr(adding, "PATIENCE", 0.5)
    goes_on, is_at_it = threading.Event(), threading.Event()

    def slow() -> Iterator[Any]:
        yield from works(app, range(CHUNK))
        is_at_it.set()
        assert goes_on.wait(TIMEOUT)
        yield from works(app, range(CHUNK, CHUNK + 2))

    with ThreadPoolExecutor(1) as pool:
        first = keyed(app)
        sending = pool.submit(first.apply_async, slow())
        try:
            assert is_at_it.wait(TIMEOUT)
            for _ in range(2):
                with pytest.raises(BatchFinished, match="another producer is sending") as refused:
                    keyed(app).apply_async(nothing())
                assert refused.value.state == "sending"
                assert f"batch {first.id}: another producer" in str(refused.value)
        finally:
            goes_on.set()
        sending.result(TIMEOUT)
    assert (first.status().state, first.status().total) == (State.SENT, CHUNK + 2)
    assert len(ids(sent(redis_db))) == CHUNK + 2


def test_one_that_only_stood_still(app: Celery, redis_db: RedisDB) -> None:
    """It is too late for that one."""

    def frozen() -> Iterator[Any]:
        yield from works(app, range(CHUNK))
        sender = redis_db.client.hget(f"graceful:batch:{first.id}", "sender")
        ledger_of(app).still_sends(first.id, sender, False)
        assert keyed(app).apply_async(works(app, range(CHUNK + 1))).id == first.id
        yield from works(app, range(CHUNK, CHUNK + 5))

    first = keyed(app)
    with pytest.raises(BatchFinished):
        first.apply_async(frozen())
    assert (first.status().state, first.status().total) == (State.SENT, CHUNK + 1)


def test_two_at_once(app: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adding, "SILENT", TIMEOUT)
    monkeypatch.setattr(adding, "PATIENCE", TIMEOUT)
    both = threading.Barrier(4, timeout=TIMEOUT)

    def send(_: int) -> str:
        both.wait()
        return keyed(app).apply_async(works(app, range(CHUNK + 1))).id

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(send, range(4)))
    assert len(found) == 1
    assert len(ids(sent(redis_db))) == CHUNK + 1


def test_it_lives_as_long_as_its_batch(app: Celery, redis_db: RedisDB) -> None:
    client = redis_db.client
    app.conf.update(graceful_batch_ttl=1000, graceful_batch_linger=100)
    batch = keyed(app).apply_async(works(app, range(2)))
    key = f"graceful:batch:{batch.id}"

    def remains() -> tuple[int, int]:
        return client.pttl(key), client.pttl(NAMED)

    for name in (key, NAMED):
        client.pexpire(name, 5000)
    one, two = ids(sent(redis_db))
    ledger_of(app).end([End(batch.id, one, Outcome.SUCCEEDED)])
    assert all(900_000 < left <= 1_000_000 for left in remains()), "each end renews it"
    ledger_of(app).end([End(batch.id, two, Outcome.SUCCEEDED)])
    assert all(90_000 < left <= 100_000 for left in remains())
    client.unlink(key)  # as if that had expired first
    assert Batch.find(KEY, app=app) is None
    assert keyed(app).apply_async(works(app, range(1))).id != batch.id


def test_where_nothing_was_sent_the_key_is_free(app: Celery, redis_db: RedisDB) -> None:
    for members in ([app.tasks["sending.work"].s(object())], iter([7])):
        with pytest.raises(TypeError):
            keyed(app).apply_async(members)
        assert redis_db.client.keys("graceful:batch*") == []


@pytest.mark.parametrize("kind", [list, iter])
def test_not_inside_of_another_one(app: Celery, redis_db: RedisDB, kind: Any) -> None:
    outer = Batch(app=app)
    with pytest.raises(ValueError, match=f"has a key, '{KEY}': give that to the outermost batch"):
        outer.apply_async(kind([keyed(app)]))
    assert redis_db.client.keys("graceful:batch*") == []


def test_batches_inside_are_gone_on_with(app: Celery, redis_db: RedisDB) -> None:
    def members(stop: bool) -> list[Any]:
        inside = [Batch(app=app, description=name) for name in ("north", "south")]
        inside[0].add(works(app, range(3)))
        inside[1].add(dies(app, range(3, 5)) if stop else works(app, range(3, 6)))
        return inside

    first = keyed(app)
    with pytest.raises(Killed):
        first.apply_async(members(stop=True))
    second = keyed(app).apply_async(members(stop=False))
    assert second.id == first.id
    assert (second.status().total, second.status().state) == (2, State.SENT)
    messages = ids(sent(redis_db))
    assert len(messages) == len(set(messages)) == 6


def test_patience_is_longer_than_a_silence() -> None:
    """So that one that was killed just now is gone on with, and not refused."""
    from celery_graceful.batches.adding import SILENT

    assert PATIENCE > SILENT
