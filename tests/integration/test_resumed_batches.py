"""A producer of a batch with batches inside dies, and another one goes on with all of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, chord
from kombu.exceptions import OperationalError
from kombu.messaging import Producer

from celery_graceful import Batch, BatchFinished
from celery_graceful.batches import sending
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.model import End, Outcome, State
from celery_graceful.batches.sending import CHUNK
from celery_graceful.store.app_stores import find_store
from tests.conftest import ROOT, RedisDB
from tests.integration.test_adding_batches import Killed, dies, inner, killed, run
from tests.integration.test_batch_sending import ids, make_app, sent, works
from tests.support.workers import TIMEOUT


@pytest.fixture
def app(redis_db: RedisDB) -> Celery:
    return make_app(redis_db.url, result_backend=redis_db.backend_url)


def ledger_of(app: Celery) -> BatchLedger:
    return BatchLedger(find_store(app))  # type: ignore[arg-type]


#: How many members each of the batches inside has; two are alike.
NAMES, SIZE = ("north", "south", "south", "west"), 4


def members_of(app: Celery, stop: int = -1) -> list[Any]:
    """Tasks, and between them batches, one of which may not come to its end."""
    given: list[Any] = []
    for n, name in enumerate(NAMES):
        given += works(app, range(1000 * n, 1000 * n + 2))
        numbers = range(100 * n, 100 * n + SIZE)
        given.append(inner(app, dies(app, numbers) if n == stop else works(app, numbers), name))
    return given


def batches_in(given: list[Any]) -> list[Batch]:
    return [one for one in given if isinstance(one, Batch)]


@pytest.mark.parametrize("stop", range(len(NAMES)))
def test_it_goes_on_with_those_inside(app: Celery, redis_db: RedisDB, stop: int) -> None:
    first, again = members_of(app, stop), members_of(app)
    outer = inner(app, [], "outer")
    with pytest.raises(Killed):
        outer.apply_async(first)
    begun = [batch.id for batch in batches_in(first)[: stop + 1]]
    Batch.load(outer.id, app=app).resume(again)
    assert [batch.id for batch in batches_in(again)][: stop + 1] == begun
    assert len({batch.id for batch in batches_in(again)}) == len(NAMES)
    for batch in batches_in(again):
        status = batch.status()
        assert (status.state, status.total, status.parent) == (State.SENT, SIZE, outer.id)
    assert outer.status().total == 3 * len(NAMES)
    times = Counter(ids(sent(redis_db)))
    assert len(times) == (2 + SIZE) * len(NAMES)
    assert max(times.values()) == 1, "what was sent whole is not sent again"
    assert not app.backend.client.keys("*:places")


def test_and_ends_when_all_of_it_has(app: Celery, redis_db: RedisDB) -> None:
    """Each callback is due once: also of one that had ended by then."""
    outer, ledger = inner(app, [], "outer"), ledger_of(app)
    first = members_of(app, 2)
    with pytest.raises(Killed):
        outer.apply_async(first)
    due: list[str] = []

    def end(batch: str) -> None:
        members = set(ledger.members_pending(batch)) - set(ledger.kids(batch))
        due.extend(map(str, ledger.end([End(batch, one, Outcome.SUCCEEDED) for one in members])))

    def callback_ends(batch: str) -> None:
        due.extend(map(str, ledger.callback_ended(batch, "on_success")))

    end(batches_in(first)[0].id)
    callback_ends(batches_in(first)[0].id)
    again = members_of(app)
    outer.resume(again)
    for batch in batches_in(again):
        if batch.status().finished is None:
            end(batch.id)
            callback_ends(batch.id)
    end(outer.id)
    assert sorted(due) == sorted(f"{batch.id}:on_success" for batch in [*batches_in(again), outer])
    callback_ends(outer.id)
    status = outer.status()
    assert (status.state, status.succeeded) == (State.DONE, 3 * len(NAMES))


def test_what_is_inside_of_those(app: Celery, redis_db: RedisDB) -> None:
    def nest(last: Any) -> list[Any]:
        deep = [inner(app, works(app, range(n, n + 2)), "deep") for n in (0, 10)]
        return [*deep, inner(app, [inner(app, last, "deepest"), *works(app, range(3))], "deep")]

    first, again = nest(dies(app, range(20, 25))), nest(works(app, range(20, 25)))
    outer = inner(app, [], "outer")
    with pytest.raises(Killed):
        outer.apply_async(first)
    outer.resume(again)
    assert [one.id for one in again] == [one.id for one in first]
    assert outer.status().total == 3
    assert again[2].status().total == 4
    assert len(set(ids(sent(redis_db)))) == 2 + 2 + 5 + 3


def test_the_same_objects_once_more(app: Celery, redis_db: RedisDB) -> None:
    """As who tries again does, when the broker was away; not what an iterator has given already."""
    away = make_app("redis://127.0.0.1:1/0", graceful_store=redis_db.url)
    listed = [inner(app, list(works(app, range(3))), name) for name in NAMES]
    outer = Batch(app=away)
    with pytest.raises(OperationalError):
        outer.apply_async(listed)
    assert outer.status().state is State.SENDING
    Batch.load(outer.id, app=app).resume(listed)
    assert outer.status().total == len(NAMES)
    assert len(ids(sent(redis_db))) == len(set(ids(sent(redis_db)))) == 3 * len(NAMES)

    outer = Batch(app=away)
    with pytest.raises(OperationalError):
        outer.apply_async([one := inner(app, works(app, range(3)))])
    with pytest.raises(ValueError, match=r"^member 1, .* is used up: make it anew, with the same"):
        Batch.load(outer.id, app=app).resume([one])
    with pytest.raises(ValueError, match="was sent before"):
        Batch(app=app).apply_async([one])


def test_properties_in_another_order_are_alike(app: Celery, redis_db: RedisDB) -> None:
    outer, some = Batch(app=app), {"a": 1, "b": 2}
    with pytest.raises(Killed):
        outer.apply_async([one := inner(app, dies(app, range(3)), properties=some)])
    turned = dict(reversed(some.items()))
    outer.resume([other := inner(app, works(app, range(3)), properties=turned)])
    assert one.id == other.id


def test_what_is_not_like_it_is_another(
    app: Celery, redis_db: RedisDB, caplog: pytest.LogCaptureFixture
) -> None:
    """And it is said that there was one, which nobody goes on with."""
    outer = Batch(app=app)
    with pytest.raises(Killed):
        outer.apply_async([one := inner(app, dies(app, range(3)), "May")])
    outer.resume([other := inner(app, works(app, range(3)), "June")])
    assert one.id != other.id
    assert outer.status().total == 2
    assert (
        f"1 batches inside of it were begun before, and not given again as they were: {one.id}"
        in caplog.text
    )
    with pytest.raises(
        BatchFinished, match="there is nothing to go on with; one inside of it of wh"
    ):
        outer.resume()


def test_one_that_was_dropped_stays_so(app: Celery, redis_db: RedisDB) -> None:
    outer, first = Batch(app=app), members_of(app, 3)
    with pytest.raises(Killed):
        outer.apply_async(first)
    batches_in(first)[0].drop()
    batches_in(first)[1].cancel()
    outer.resume(members_of(app))
    status = outer.status()
    assert (status.state, status.total, status.revoked) == (State.SENT, 3 * len(NAMES), 1)


def test_one_that_was_completed_by_force_in_part(app: Celery, redis_db: RedisDB) -> None:
    """What was never sent has not succeeded, so nor has it, nor what it is inside of."""
    outer, ledger = inner(app, [], "outer"), ledger_of(app)
    first = inner(app, dies(app, range(CHUNK + 5)))
    with pytest.raises(Killed):
        outer.apply_async([first])
    members = list(ledger.members_pending(first.id))
    ledger.complete(first.id)
    outer.resume([inner(app, works(app, range(CHUNK + 10)))])
    due = ledger.end([End(first.id, one, Outcome.SUCCEEDED) for one in members])
    status = first.status()
    assert (due, status.state, status.succeeded) == ([], State.DONE, CHUNK)
    assert status.callbacks == {"on_success": "never"}
    assert (outer.status().state, outer.status().failed) == (State.DONE, 1)


def test_who_was_slow_sends_nothing_more(app: Celery, redis_db: RedisDB) -> None:
    """Neither members of the one inside that it was at, nor another one."""
    stands, goes_on = threading.Event(), threading.Event()
    caught: list[BaseException] = []
    outer = inner(app, [], "outer")

    def slow() -> Iterator[Any]:
        yield from works(app, range(CHUNK))
        stands.set()
        assert goes_on.wait(TIMEOUT)
        yield from works(app, range(CHUNK, 2 * CHUNK))

    def send() -> None:
        try:
            outer.apply_async([inner(app, slow(), "one"), inner(app, works(app, range(5)), "two")])
        except BatchFinished as exc:
            caught.append(exc)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    assert stands.wait(TIMEOUT)

    def again() -> Iterator[Any]:
        yield inner(app, works(app, range(2 * CHUNK)), "one")
        goes_on.set()
        thread.join(TIMEOUT)
        assert not thread.is_alive()
        yield inner(app, works(app, range(5)), "two")

    Batch.load(outer.id, app=app).resume(again())
    assert len(caught) == 1
    assert (outer.status().state, outer.status().total) == (State.SENT, 2)
    assert len(set(ids(sent(redis_db)))) == 2 * CHUNK + 5


def test_in_a_task_that_is_run_again(app: Celery, redis_db: RedisDB) -> None:
    """What was sent whole, inside of what it goes on with, is not sent once more."""
    outer = inner(app, [app.tasks["sending.work"].si(0).set(task_id="adds-0")], "outer")
    outer.apply_async()

    def region(last: Any) -> Batch:
        kids = [inner(app, list(works(app, range(10 * n, 10 * n + 3))), "kid") for n in (1, 2)]
        return inner(app, [*kids, last], "region")

    first, again = region(dies(app, range(3))), region(works(app, range(3)))
    killed(app, outer, first)
    with run(app, outer, "adds-0"):
        outer.add(again)
    assert again.id == first.id
    assert again.status().total == 2 + 3
    times = Counter(ids(sent(redis_db)))
    assert len(times) == 1 + 3 + 3 + 3
    assert max(times.values()) == 1


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("at", [2, 3, 6, 9, 12, 15])
def test_killed(app: Celery, redis_db: RedisDB, at: int, twice: bool) -> None:
    """With -9, before something that it tells the store or the broker, and so who goes on."""
    batch_id = str(uuid.uuid4())
    program = f"""
        import os, pytest, signal
        from celery_graceful import Batch
        from celery_graceful.batches import sending
        from celery_graceful.batches.ledger import BatchLedger
        from tests.integration.test_batch_sending import make_app
        from tests.integration.test_resumed_batches import members_of
        from tests.support.patience import has_patience

        has_patience(pytest.MonkeyPatch())
        app = make_app({redis_db.url!r})
        batch, calls = Batch(app=app), []
        batch.id = {batch_id!r}
        def counted(call):
            def counting(*args, **kwargs):
                calls.append(1)
                if len(calls) == {at} + 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)
            return counting
        sending.publish = counted(sending.publish)
        BatchLedger._run = counted(BatchLedger._run)
    """
    env = {**os.environ, "PYTHONPATH": "."}
    for what in ("apply_async", f"load({batch_id!r}, app=app).resume")[: 1 + twice]:
        call = f"batch.{what}(members_of(app))"
        argv = [sys.executable, "-c", f"{textwrap.dedent(program)}\n{call}"]
        died = subprocess.run(argv, cwd=ROOT, timeout=TIMEOUT, env=env)
        assert died.returncode == -signal.SIGKILL
    batch, again = Batch.load(batch_id, app=app), members_of(app)
    batch.resume(again)
    status = batch.status()
    assert (status.state, status.total, status.kids) == (State.SENT, 3 * len(NAMES), len(NAMES))
    for one in batches_in(again):
        assert (one.status().state, one.status().total) == (State.SENT, SIZE)
    times = Counter(ids(sent(redis_db)))
    assert len(times) == (2 + SIZE) * len(NAMES)
    assert max(times.values()) == 1


def test_what_is_in_a_queue_is_not_sent_again(app: Celery, redis_db: RedisDB) -> None:
    """Nor is what a worker holds. What is nowhere is; and all, where it takes too long to see."""
    outer = Batch(app=app)
    with pytest.raises(Killed):
        outer.apply_async(dies(app, range(CHUNK + 1)))
    client = redis_db.client
    lost, claimed = client.lpop("celery"), client.lpop("celery")
    client.sadd("graceful:workers", "w")
    client.hset("graceful:claims:w", "1", claimed)
    outer.resume(works(app, range(CHUNK)))
    assert ids(sent(redis_db))[-1:] == ids([json.loads(lost)])
    assert len(sent(redis_db)) == CHUNK - 1


def test_a_chord_that_is_there_in_part_is_sent_again(
    redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some tasks of its header are in the queue: they are not all of it."""
    app = make_app(redis_db.url, result_backend=redis_db.backend_url)
    work = app.tasks["sending.work"]
    members = [work.si(0), chord([work.si(n) for n in range(1, 5)], work.si(5)), work.si(6)]
    batch, real, calls = Batch(app=app), Producer.publish, []

    def dies(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(Producer, "publish", dies)
    with pytest.raises(Killed):
        batch.apply_async(members)
    monkeypatch.undo()
    assert 0 < len(sent(redis_db)) < 6
    batch.resume(members)
    headers = Counter(
        (message["headers"].get("group"), message["headers"]["argsrepr"])
        for message in sent(redis_db)
    )
    groups = Counter(group for group, _ in headers if group)
    assert max(groups.values()) == 4, "one of them whole"
    assert all(headers[None, f"({n},)"] == 1 for n in (0, 6)), headers


def test_the_app_is_that_of_what_is_inside(redis_db: RedisDB) -> None:
    """Where the outer one has neither members of its own nor callbacks, before it."""
    app = make_app(redis_db.url)
    kid = Batch()
    kid.add([app.tasks["sending.work"].s(1)])
    outer = Batch()
    outer.add([kid])
    top = Batch().apply_async([outer])
    assert top.app is app
    assert len(sent(redis_db)) == 1


def test_where_it_takes_too_long_to_look(
    app: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = Batch(app=app)
    with pytest.raises(Killed):
        outer.apply_async(dies(app, range(CHUNK + 1)))
    monkeypatch.setattr(sending, "PATIENCE", 0.0)
    outer.resume(works(app, range(CHUNK)))
    assert len(sent(redis_db)) == 2 * CHUNK
    assert outer.status().total == CHUNK
