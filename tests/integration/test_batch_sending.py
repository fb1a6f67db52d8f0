"""How members are sent: registered before, in pipelines, and with bounded memory."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery, Task, chain, chord, group
from celery.result import AsyncResult, EagerResult
from kombu.exceptions import OperationalError

from celery_graceful import Batch, BatchFinished, Graceful, StoreAway
from celery_graceful.batches import sending
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.marks import Mark, member_of
from celery_graceful.batches.model import End, Outcome, State
from celery_graceful.batches.packing import unpack
from celery_graceful.batches.sending import CHUNK, Sending
from celery_graceful.store.app_stores import find_store
from tests.conftest import RabbitVhost, RedisDB
from tests.servers import RedisServer
from tests.support.workers import ROOT, TIMEOUT, wait_until


def make_app(broker: str, **conf: Any) -> Celery:
    app = Celery("sending", broker=broker, set_as_current=False)
    app.conf.update(task_publish_retry_policy={"max_retries": 1, "interval_start": 0}, **conf)
    Graceful(app)

    @app.task(name="sending.work", shared=False)
    def work(*args: Any) -> None: ...

    return app


@pytest.fixture
def app(redis_db: RedisDB) -> Celery:
    return make_app(redis_db.url, result_backend=redis_db.backend_url)


def works(app: Celery, numbers: range) -> Any:
    return (app.tasks["sending.work"].s(n) for n in numbers)


def sent(db: RedisDB, queue: str = "celery") -> list[dict[str, Any]]:
    """The messages in a queue, the first first."""
    return [json.loads(text) for text in db.client.lrange(queue, 0, -1)][::-1]


def ids(messages: list[dict[str, Any]]) -> list[str]:
    return [message["headers"]["id"] for message in messages]


def test_each_member_is_registered_and_sent(app: Celery, redis_db: RedisDB) -> None:
    batch = Batch(app=app, description="many")
    batch.apply_async(works(app, range(2 * CHUNK + 1)))
    messages = sent(redis_db)
    assert len(set(ids(messages))) == 2 * CHUNK + 1
    assert [json.loads(_body(m))[0] for m in messages] == [[n] for n in range(2 * CHUNK + 1)]
    pending = set(BatchLedger(find_store(app)).members_pending(batch.id))  # type: ignore[arg-type]
    assert pending == set(ids(messages))
    for message in messages:
        assert member_of(message["headers"]) == Mark(batch.id, message["headers"]["id"])
    status = batch.status()
    assert (status.state, status.total, status.pending) == (
        State.SENT,
        len(messages),
        len(messages),
    )


def _body(message: dict[str, Any]) -> bytes:
    return base64.b64decode(message["body"])


def test_registered_before_it_is_sent(app: Celery, redis_db: RedisDB) -> None:
    """Whatever is in the queue is known; while they are sent, too."""
    batch = Batch(app=app)
    seen = []

    def members() -> Any:
        for n in range(3 * CHUNK):
            if n % CHUNK == 0:
                seen.append((len(sent(redis_db)), n and batch.status().total))
            yield app.tasks["sending.work"].s(n)

    batch.apply_async(members())
    assert seen == [(0, 0), (CHUNK, CHUNK), (2 * CHUNK, 2 * CHUNK)]


def test_options_are_kept(app: Celery, redis_db: RedisDB) -> None:
    work = app.tasks["sending.work"]
    linked = work.si("linked")
    sig = work.s(1).set(queue="other", headers={"mine": 1}, link=[linked], link_error=[linked])
    before = dict(sig), dict(sig.options)
    Batch(app=app).apply_async([sig, sig, work.s(2).set(countdown=1000, expires=2000)])
    assert (dict(sig), dict(sig.options)) == before
    one, other = sent(redis_db, "other")
    assert one["headers"]["id"] != other["headers"]["id"]
    assert one["headers"]["mine"] == 1
    embed = json.loads(_body(one))[2]
    assert [each["args"] for each in embed["callbacks"] + embed["errbacks"]] == [["linked"]] * 2
    assert "graceful_batch" not in json.dumps(embed)
    (later,) = sent(redis_db)
    assert later["headers"]["eta"] < later["headers"]["expires"]


def test_times_of_what_is_sent_at_once_stay(app: Celery, redis_db: RedisDB) -> None:
    """Sent again, it comes due and expires when it would have."""
    work = app.tasks["sending.work"]
    work.expires = 3000
    soon = work.si(1).set(countdown=1000, expires=2000)
    parts = chain(soon, soon), chord([soon], soon), work.s(2)
    given = soon.clone()
    batch = Batch(app=app)
    batch.apply_async(parts)
    assert soon == given
    first = [{name: one["headers"][name] for name in ("eta", "expires")} for one in sent(redis_db)]
    ledger = BatchLedger(find_store(app))
    members = list(ledger.members_pending(batch.id))
    for member, packed in ledger.messages(batch.id, members).items():
        unpack(app, packed, Mark(batch.id, member)).apply_async()
    again = [{name: one["headers"][name] for name in ("eta", "expires")} for one in sent(redis_db)]
    assert len(again) == 2 * len(first) == 6
    assert all(again.count(times) == 2 * first.count(times) for times in first)


def test_an_id_of_the_users(app: Celery, redis_db: RedisDB) -> None:
    sig = app.tasks["sending.work"].s(1)
    result = sig.freeze()
    Batch(app=app).apply_async([sig, app.tasks["sending.work"].s(2).set(task_id="mine")])
    assert ids(sent(redis_db)) == [result.id, "mine"]


def test_results_are_as_the_task_says(app: Celery, redis_db: RedisDB) -> None:
    """And nobody subscribes to them, one by one."""
    work = app.tasks["sending.work"]
    others = set(redis_db.client.pubsub_channels("celery-task-meta-*"))  # of tests before
    Batch(app=app).apply_async([work.s(1), work.s(2).set(ignore_result=True)])
    assert [m["headers"]["ignore_result"] for m in sent(redis_db)] == [False, True]
    assert set(redis_db.client.pubsub_channels("celery-task-meta-*")) <= others


def test_what_is_kept_sends_the_same_again(app: Celery, redis_db: RedisDB) -> None:
    work = app.tasks["sending.work"]
    batch = Batch(app=app).apply_async([work.s(1), chain(work.s(2), work.si(3))])
    first = sent(redis_db)
    ledger = BatchLedger(find_store(app))  # type: ignore[arg-type]
    members = [member_of(message["headers"]) for message in first]
    kept = ledger.messages(batch.id, [member.name for member in members if member])
    redis_db.client.delete("celery")
    for member in members:
        assert member is not None
        unpack(app, kept[member.name], member).apply_async()
    again = sent(redis_db)
    assert [_mark(message) for message in again] == [_mark(message) for message in first]
    (following,) = [embed["chain"] for m in again if (embed := json.loads(_body(m))[2])["chain"]]
    assert Mark(batch.id, following[0]["options"]["task_id"]) in members


def _mark(message: dict[str, Any]) -> str:
    return str(message["headers"]["graceful_batch"])


def test_a_store_that_is_away(app: Celery, redis_server: RedisServer, redis_db: RedisDB) -> None:
    app.conf.graceful_store = "redis://127.0.0.1:1/0"
    batch = Batch(app=app)
    with pytest.raises(StoreAway, match=r"graceful_store: .*127\.0\.0\.1:1"):
        batch.apply_async(works(app, range(3)))
    assert sent(redis_db) == []


def test_a_broker_that_is_away(redis_db: RedisDB) -> None:
    app = make_app("redis://127.0.0.1:1/0", graceful_store=redis_db.url)
    batch = Batch(app=app)
    with pytest.raises(OperationalError):
        batch.apply_async(works(app, range(3)))
    assert batch.status().state is State.SENDING
    app = make_app(redis_db.url)
    Batch.load(batch.id, app=app).resume(works(app, range(3)))
    assert len(sent(redis_db)) == 3
    assert batch.status().state is State.SENT


def test_the_connection_is_lost_meanwhile(app: Celery, redis_db: RedisDB) -> None:
    """All are sent, some perhaps twice: each is one member."""

    def members() -> Any:
        for n in range(3 * CHUNK):
            if n == CHUNK:
                redis_db.client.client_kill_filter(_type="normal", skipme=True)
            yield app.tasks["sending.work"].s(n)

    batch = Batch(app=app).apply_async(members())
    assert set(Counter(ids(sent(redis_db)))) == set(
        BatchLedger(find_store(app)).members_pending(batch.id)  # type: ignore[arg-type]
    )
    assert batch.status().total == 3 * CHUNK


# -- tasks that do not send each call ---------------------------------------------------


@pytest.fixture
def alone(app: Celery) -> Any:
    """A task of which each argument is sent once, as by celery-once and celery-singleton."""

    class Alone(Task):
        abstract = True
        rejects, locks = True, dict[Any, str]()

        def apply_async(self, args: Any = None, *more: Any, **options: Any) -> Any:
            is_new = args[0] not in self.locks
            held_by = self.locks.setdefault(args[0], options["task_id"])
            if is_new:
                return self.sends(args, *more, **options)
            return EagerResult(None, None, "REJECTED") if self.rejects else AsyncResult(held_by)

        sends = Task.apply_async

    @app.task(name="sending.alone", base=Alone, shared=False)
    def alone(*args: Any) -> None: ...

    return alone


@pytest.mark.parametrize("rejects", [True, False])
def test_duplicates_that_are_not_sent_have_ended(
    app: Celery, redis_db: RedisDB, alone: Any, rejects: bool, caplog: pytest.LogCaptureFixture
) -> None:
    alone.rejects = rejects
    caplog.set_level("INFO")
    work = app.tasks["sending.work"]
    batch = Batch(app=app, on_success=work.si("success"), on_failure=work.si("failure"))
    batch.apply_async([alone.s(1), work.s(2), alone.s(1), alone.s(1)])
    assert [json.loads(_body(m))[0] for m in sent(redis_db)] == [[1], [2]]
    status = batch.status()
    assert (status.total, status.pending, status.succeeded) == (4, 2, 2)
    assert caplog.text.count("sending.alone has an apply_async of its own that sent nothing") == 1
    again = Batch(app=app, on_success=work.si("success")).apply_async([alone.s(1)])
    assert again.status().pending == 0
    assert json.loads(_body(sent(redis_db)[-1]))[0] == ["success"]


def test_a_task_that_is_run_where_it_is_sent(app: Celery, redis_db: RedisDB, alone: Any) -> None:
    work = app.tasks["sending.work"]
    alone.apply_async = lambda *_, **__: EagerResult(None, ValueError("no"), "FAILURE")
    batch = Batch(app=app, on_failure=work.si("failure"), on_success=work.si("success"))
    status = batch.apply_async([alone.s(1)]).status()
    assert (status.pending, status.failed) == (0, 1)
    assert [json.loads(_body(m))[0] for m in sent(redis_db)] == [["failure"]]


@pytest.mark.parametrize("rejects", [True, False])
def test_who_is_the_duplicate_of_itself_has_not_ended(
    app: Celery, redis_db: RedisDB, alone: Any, rejects: bool
) -> None:
    """It holds the lock of a message that the broker does not have."""
    alone.rejects = rejects
    alone.sends = Mock(side_effect=OperationalError("lost"))
    batch = Batch(app=app).apply_async([alone.s(1)])
    assert batch.status().pending == 1
    other = Batch(app=app)
    alone.sends = Mock(side_effect=LookupError("gone"))
    with pytest.raises(LookupError):
        other.apply_async([alone.s(2)])
    other.resume([alone.s(2)])
    assert other.status().pending == 1


# -- a producer that does not come to its end ------------------------------------------


def fails_at(app: Celery, count: int, at: int) -> Any:
    for n in range(count):
        if n == at:
            raise LookupError("the database is gone")
        yield app.tasks["sending.work"].s(n)


def test_members_that_fail_to_come(
    app: Celery, redis_db: RedisDB, caplog: pytest.LogCaptureFixture
) -> None:
    batch = Batch(app=app)
    with pytest.raises(LookupError):
        batch.apply_async(fails_at(app, 2 * CHUNK, CHUNK + 7))
    assert batch.status().state is State.SENDING
    assert f"<Batch {batch.id}> stays in state sending, with {CHUNK} members sent" in caplog.text
    Batch.load(batch.id, app=app).resume(works(app, range(2 * CHUNK)))
    # Of its last chunk nobody knows whether it was sent: it is looked for.
    assert set(Counter(ids(sent(redis_db))).values()) == {1}
    assert len(set(ids(sent(redis_db)))) == 2 * CHUNK
    status = batch.status()
    assert (status.state, status.total) == (State.SENT, 2 * CHUNK)
    with pytest.raises(BatchFinished):
        batch.resume()


def test_resumed_with_what_it_has(app: Celery, redis_db: RedisDB) -> None:
    batch = Batch(app=app)
    with pytest.raises(LookupError):
        batch.apply_async(fails_at(app, 2 * CHUNK, CHUNK + 7))
    assert batch.resume().status().total == CHUNK
    assert batch.status().state is State.SENT


def test_resumed_with_the_rest(app: Celery, redis_db: RedisDB) -> None:
    """Others than those that it has are others, wherever they stand."""
    batch = Batch(app=app)
    with pytest.raises(LookupError):
        batch.apply_async(fails_at(app, 2 * CHUNK, CHUNK))
    batch.resume(works(app, range(CHUNK, 2 * CHUNK)))
    assert len(ids(sent(redis_db))) == len(set(ids(sent(redis_db)))) == 2 * CHUNK


@pytest.mark.parametrize("before", ["register", "publish"])
def test_killed(app: Celery, redis_db: RedisDB, before: str) -> None:
    """At the worst moment: nothing is lost, and nothing counts twice."""
    batch_id, count = str(uuid.uuid4()), 3 * CHUNK
    program = f"""
        import os, pytest, signal
        from celery_graceful import Batch
        from celery_graceful.batches import sending
        from tests.integration.test_batch_sending import make_app, works, CHUNK
        from tests.support.patience import has_patience

        has_patience(pytest.MonkeyPatch())
        app = make_app({redis_db.url!r})
        batch = Batch(app=app)
        batch.id = {batch_id!r}
        calls = []
        def die_at_the_second(call):
            def dying(*args, **kwargs):
                calls.append(1)
                if len(calls) == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)
            return dying
        if {before!r} == "publish":
            sending.publish = die_at_the_second(sending.publish)
        else:
            sending.BatchLedger.add = die_at_the_second(sending.BatchLedger.add)
        batch.apply_async(works(app, range({count})))
    """
    argv = [sys.executable, "-c", textwrap.dedent(program)]
    died = subprocess.run(argv, cwd=ROOT, timeout=TIMEOUT, env={**os.environ, "PYTHONPATH": "."})
    assert died.returncode == -signal.SIGKILL
    assert len(sent(redis_db)) == CHUNK
    batch = Batch.load(batch_id, app=app)
    assert batch.status().state is State.SENDING
    batch.resume(works(app, range(count)))
    status = batch.status()
    assert (status.state, status.total) == (State.SENT, count)
    assert len(set(ids(sent(redis_db)))) == count


def test_resumed_without_the_batch_that_was_inside(
    app: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It made an end of a chunk where there is none now: the last ones are parts of two."""
    batch, kid, some = Batch(app=app), Batch(app=app), CHUNK // 2
    kid.add(app.tasks["sending.work"].s("kid"))
    real, calls = sending.publish, []

    def dies(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:  # registered, and then nothing more was done
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(sending, "publish", dies)
    with pytest.raises(KeyboardInterrupt):
        batch.apply_async([*works(app, range(some)), kid, *works(app, range(some, 2 * some + 50))])
    monkeypatch.undo()
    Batch.load(batch.id, app=app).resume(works(app, range(2 * some + 50)))
    kept = BatchLedger(find_store(app)).members_pending(batch.id)  # type: ignore[arg-type]
    assert set(kept) - {kid.id} == set(ids(sent(redis_db))) - {ids(sent(redis_db))[some]}
    assert batch.status().total == 2 * some + 51


@pytest.mark.parametrize("sizes", [[1] * 10 + [1100], [400, 300, 200, 300, 100, 400, 50] * 3])
def test_a_chunk_that_ended_by_its_bytes(
    app: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    """All of it may not have been sent; it was filled from the front."""
    texts = [random.Random(n).randbytes(kilo * 500).hex() for n, kilo in enumerate(sizes)]
    given = [app.tasks["sending.work"].s(text) for text in texts]
    real, calls = sending.publish, []

    for at in (1, 2):

        def dies(*args: Any, at: int = at) -> Any:
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return real(*args)

        calls.clear()
        redis_db.client.delete("celery")
        batch = Batch(app=app)
        monkeypatch.setattr(sending, "publish", dies)
        try:
            batch.apply_async(given)
        except KeyboardInterrupt:
            monkeypatch.undo()
            Batch.load(batch.id, app=app).resume(given)
        assert len(ids(sent(redis_db))) == len(set(ids(sent(redis_db)))) == len(sizes)


def test_who_fails_when_another_one_has_gone_on(app: Celery, redis_db: RedisDB) -> None:
    """It had sent nothing; it does not forget what the other one has sent."""
    batch = Batch(app=app)

    def members() -> Iterator[Any]:
        yield from works(app, range(3))
        Batch.load(batch.id, app=app).resume(works(app, range(3)))
        raise LookupError

    with pytest.raises(LookupError):
        batch.apply_async(members())
    assert (batch.status().state, batch.status().total) == (State.SENT, 3)


def test_what_is_kept_stays_when_it_is_registered_again(
    app: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its times, which count from the first time."""
    given = [app.tasks["sending.work"].s(n).set(expires=100) for n in range(3)]
    batch = Batch(app=app)
    monkeypatch.setattr(sending, "publish", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        batch.apply_async(given)
    monkeypatch.undo()
    ledger = BatchLedger(find_store(app))  # type: ignore[arg-type]
    members = list(ledger.members_pending(batch.id))
    before = ledger.messages(batch.id, members)
    batch.resume(given)
    assert ledger.messages(batch.id, members) == before
    assert len(before) == 3


def test_resumed_while_the_broker_is_still_away(redis_db: RedisDB) -> None:
    """Each time a chunk more is registered, and none of them is lost."""
    count = 3 * CHUNK
    away = make_app("redis://127.0.0.1:1/0", graceful_store=redis_db.url)
    batch = Batch(app=away)
    with pytest.raises(OperationalError):
        batch.apply_async(works(away, range(count)))
    for _ in range(2):
        with pytest.raises(OperationalError):
            Batch.load(batch.id, app=away).resume(works(away, range(count)))
    app = make_app(redis_db.url)
    Batch.load(batch.id, app=app).resume(works(app, range(count)))
    assert len(set(ids(sent(redis_db)))) == count
    assert batch.status().state is State.SENT


@pytest.mark.parametrize("known", [True, False])
def test_what_was_added_is_there_when_it_is_sent_again(
    app: Celery, redis_db: RedisDB, known: bool
) -> None:
    """Nothing was sent the first time: of a generator some members were taken already."""
    work = app.tasks["sending.work"]
    batch = Batch(app=app if known else None)
    batch.add(works(app, range(10)))
    with pytest.raises(TypeError, match="is no member"):
        batch.apply_async(iter([work.s(10), "nothing"]))
    assert batch.apply_async([work.s(10)]).status().total == 11
    assert [json.loads(_body(m))[0] for m in sent(redis_db)] == [[n] for n in range(11)]


def test_options_of_a_group(app: Celery, redis_db: RedisDB) -> None:
    """As Celery does: each of its tasks is sent with them."""
    one, other = app.tasks["sending.work"].s(1), app.tasks["sending.work"].s(2).set(queue="own")
    Batch(app=app).apply_async(group(one, group(other)).set(queue="of-the-group", priority=3))
    assert not sent(redis_db, "own")
    found = redis_db.client.keys("of-the-group*")
    assert sum(redis_db.client.llen(key) for key in found) == 2
    assert "queue" not in one.options


def test_who_adds_while_it_is_being_sent(app: Celery, redis_db: RedisDB) -> None:
    """Each of those is a member of its own, though others are like it."""
    work = app.tasks["sending.work"]
    batch = Batch(app=app)

    def members() -> Any:
        yield from works(app, range(CHUNK))
        other = Batch.load(batch.id, app=app)
        for value in ("x", "x", 0):
            other.add(work.s(value))

    batch.apply_async(members())
    assert batch.status().total == CHUNK + 3
    assert len(set(ids(sent(redis_db)))) == CHUNK + 3


def test_ids_that_mean_something_else(app: Celery) -> None:
    sig = app.tasks["sending.work"].s().set(task_id="callback:on_success")
    with pytest.raises(ValueError, match="means a callback: give it another"):
        Batch(app=app).apply_async([sig])


def test_a_chain_of_tasks_with_a_serializer_of_their_own(redis_db: RedisDB) -> None:
    app = make_app(redis_db.url, accept_content=["json", "pickle"])
    work = app.tasks["sending.work"]
    sig = chain(*(work.si(complex(1, n)).set(serializer="pickle") for n in range(2)))
    batch = Batch(app=app).apply_async([sig])
    ledger = BatchLedger(find_store(app))  # type: ignore[arg-type]
    ((member, packed),) = ledger.messages(batch.id, list(ledger.members_pending(batch.id))).items()
    again = unpack(app, packed, Mark(batch.id, member))
    assert [task.args for task in again.tasks] == [(complex(1, 0),), (complex(1, 1),)]


def test_a_member_that_is_run_again_adds_again(app: Celery, redis_db: RedisDB) -> None:
    """The same ids are the same members: one that has ended is not sent once more."""
    batch = Batch(app=app).apply_async([app.tasks["sending.work"].s(1).set(task_id="adds")])
    ledger = BatchLedger(find_store(app))  # type: ignore[arg-type]
    added = [app.tasks["sending.work"].s(n).set(task_id=f"added-{n}") for n in range(2)]

    def add() -> list[str]:
        redis_db.client.delete("celery")
        Sending(app, ledger, batch.id, inside="adds", again=True, counted=False).all(
            added, Batch, lambda kid: None
        )
        return ids(sent(redis_db))

    assert add() == ["added-0", "added-1"]
    ledger.end([End(batch.id, "added-0", Outcome.SUCCEEDED)])
    assert add() == ["added-1"]
    ledger.end([End(batch.id, "added-1", Outcome.FAILED)])
    assert add() == []
    assert batch.status().total == 3


# -- RabbitMQ ------------------------------------------------------------------------


def test_rabbitmq_confirms(rabbit_vhost: RabbitVhost, redis_db: RedisDB) -> None:
    app = make_app(rabbit_vhost.url, graceful_store=redis_db.url)
    batch = Batch(app=app).apply_async(works(app, range(CHUNK + 5)))
    with app.connection_for_write() as connection:
        found = connection.default_channel.queue_declare("celery", passive=True)
    assert found.message_count == CHUNK + 5  # at once: each is confirmed
    assert batch.status().total == CHUNK + 5


def test_rabbitmq_that_closes_the_connection(rabbit_vhost: RabbitVhost, redis_db: RedisDB) -> None:
    app = make_app(rabbit_vhost.url, graceful_store=redis_db.url)

    def members() -> Any:
        for n in range(2 * CHUNK):
            if n == CHUNK:
                wait_until(rabbit_vhost.cut, "the broker knows its connections")
            yield app.tasks["sending.work"].s(n)

    Batch(app=app).apply_async(members())
    with app.connection_for_write() as connection:
        found = connection.default_channel.queue_declare("celery", passive=True)
    assert found.message_count == 2 * CHUNK
