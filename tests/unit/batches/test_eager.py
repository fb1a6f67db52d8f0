"""Batches where tasks run where they are sent: what users of a test suite see."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, chain, chord, group

from celery_graceful import Batch, BatchFinished, UnknownBatch, current_batch
from celery_graceful.batches.model import State


class Effects(list[Any]):
    """What tasks did, in order."""


@pytest.fixture
def effects() -> Effects:
    return Effects()


@pytest.fixture
def app(effects: Effects) -> Celery:
    app = Celery("eager", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.task_always_eager = True

    @app.task(name="work", shared=False)
    def work(what: Any) -> Any:
        effects.append(what)
        return what

    @app.task(name="fails", shared=False)
    def fails(*args: Any) -> None:
        effects.append("failed")
        raise LookupError("no such thing")

    @app.task(name="told", shared=False)
    def told(summary: dict[str, Any], as_what: str = "told") -> None:
        effects.append((as_what, summary["succeeded"], summary["failed"]))

    @app.task(name="adds", shared=False)
    def adds(depth: int) -> None:
        effects.append(f"adds {depth}")
        batch = current_batch()
        assert batch is not None
        if depth:
            batch.add(app.tasks["adds"].s(depth - 1))

    @app.task(name="cancels", shared=False)
    def cancels() -> None:
        batch = current_batch()
        assert batch is not None
        batch.cancel()

    @app.task(name="looks", shared=False)
    def looks(*args: Any) -> None:
        batch = current_batch()
        effects.append(batch and batch.id)

    return app


def sig(app: Celery, name: str, *args: Any) -> Any:
    return app.tasks[name].s(*args)


def three(app: Celery, **options: Any) -> Batch:
    told = app.tasks["told"]
    return Batch(
        on_success=told.s("success"),
        on_complete=told.s("complete"),
        on_failure=told.s("failure"),
        app=app,
        **options,
    )


def test_members_run_and_callbacks_once(app: Celery, effects: Effects) -> None:
    batch = three(app, description="three of them", properties={"month": 5})
    assert batch.apply_async(sig(app, "work", n) for n in range(3)) is batch
    assert effects == [0, 1, 2, ("complete", 3, 0), ("success", 3, 0)]
    status = Batch.load(batch.id, app=app).status()
    assert (status.state, status.total, status.pending) == (State.DONE, 3, 0)
    assert status.description == "three of them"
    assert status.properties == {"month": 5}
    assert batch.wait(timeout=5) == status


def test_one_that_fails(app: Celery, effects: Effects) -> None:
    members = [sig(app, "fails"), sig(app, "work", 1), sig(app, "fails")]
    batch = three(app).apply_async(members)
    assert effects == ["failed", ("failure", 0, 1), 1, "failed", ("complete", 1, 2)]
    assert (batch.status().failed, batch.status().succeeded) == (2, 1)


def test_errors_come_out_where_celery_lets_them(app: Celery, effects: Effects) -> None:
    app.conf.task_eager_propagates = True
    batch = three(app)
    with pytest.raises(LookupError):
        batch.apply_async([sig(app, "fails"), sig(app, "work", 1)])
    assert effects == ["failed", ("failure", 0, 1)]


def test_members_of_every_kind(app: Celery, effects: Effects) -> None:
    work = app.tasks["work"]
    batch = three(app).apply_async(
        [
            work.si("immutable"),
            chain(work.s("first"), work.si("second")),
            chord([work.s("header"), work.s("header")], work.si("body")),
            group(work.s("grouped"), group(work.s("nested"))),
            work.chunks([("c1",), ("c2",), ("c3",)], 2),
            dict(work.s("from a message")),
            (work.s(n) for n in ("lazy",)),
        ]
    )
    status = batch.status()
    assert (status.total, status.succeeded) == (9, 9)
    said = [one for one in effects if isinstance(one, str)]
    assert said == [
        *("immutable", "first", "second", "header", "header", "body", "grouped", "nested"),
        *("c1", "c2", "c3", "from a message", "lazy"),
    ]


def test_a_chain_fails_as_one_member(app: Celery, effects: Effects) -> None:
    members = chain(sig(app, "fails"), app.tasks["work"].si("never"))
    status = three(app).apply_async([members]).status()
    assert (status.total, status.failed) == (1, 1)
    assert "never" not in effects


def test_an_empty_batch_completes_at_once_and_once(app: Celery, effects: Effects) -> None:
    batch = three(app).apply_async()
    assert effects == [("complete", 0, 0), ("success", 0, 0)]
    assert batch.status().state is State.DONE
    with pytest.raises(BatchFinished):
        batch.apply_async()


def test_added_before(app: Celery, effects: Effects) -> None:
    batch = three(app)
    batch.add(sig(app, "work", 1), sig(app, "work", 2))
    batch.add([sig(app, "work", 3)])
    batch.add(sig(app, "work", n) for n in (4, 5))
    assert effects == []
    batch.apply_async([sig(app, "work", 6)])
    assert effects[:6] == [1, 2, 3, 4, 5, 6]
    assert batch.status().succeeded == 6


def test_added_from_inside_and_not_afterwards(app: Celery, effects: Effects) -> None:
    batch = three(app).apply_async([sig(app, "adds", 2)])
    assert effects == ["adds 2", "adds 1", "adds 0", ("complete", 3, 0), ("success", 3, 0)]
    with pytest.raises(BatchFinished, match="has ended"):
        batch.add(sig(app, "work", 1))


def test_a_callback_may_add(app: Celery, effects: Effects) -> None:
    batch = Batch(on_complete=app.tasks["adds"].si(1), app=app)
    batch.apply_async([sig(app, "work", "only")])
    assert effects == ["only", "adds 1", "adds 0"]
    assert batch.status().total == 2
    assert batch.status().state is State.DONE


def test_inside_of_each_other(app: Celery, effects: Effects) -> None:
    parent, kid = three(app), three(app)
    kid.add(sig(app, "work", "in the kid"))
    parent.apply_async([kid, sig(app, "work", "beside")])
    assert effects == [
        *("in the kid", ("complete", 1, 0), ("success", 1, 0)),
        *("beside", ("complete", 2, 0), ("success", 2, 0)),
    ]
    assert Batch.load(kid.id, app=app).status().parent == parent.id
    with pytest.raises(ValueError, match="was sent before: make another one"):
        three(app).apply_async([kid])


def test_what_has_expired_is_revoked(app: Celery, effects: Effects) -> None:
    """As a worker has it; Celery's eager mode does not look."""
    batch = three(app).apply_async([sig(app, "work", 1).set(expires=-1), sig(app, "work", 2)])
    assert (batch.status().succeeded, batch.status().revoked) == (1, 1)
    assert effects == [2, ("complete", 1, 0)]


def test_resumed_with_the_batch_inside(app: Celery, effects: Effects) -> None:
    def members(fails: bool) -> Any:
        kid = three(app)
        kid.add(sig(app, "work", "in the kid"))
        yield kid
        if fails:
            raise LookupError
        yield sig(app, "work", "beside")

    parent = three(app)
    with pytest.raises(LookupError):
        parent.apply_async(members(True))
    parent.resume(members(False))
    assert [one for one in effects if isinstance(one, str)] == ["in the kid", "beside"]
    assert (parent.status().state, parent.status().total) == (State.DONE, 2)


def test_resumed_after_one_that_raised(app: Celery, effects: Effects) -> None:
    """With ``task_eager_propagates``: what came after it in its chunk has not run."""
    app.conf.task_eager_propagates = True
    given = [sig(app, "work", 0), sig(app, "fails"), sig(app, "work", 1), sig(app, "work", 2)]
    batch = three(app)
    with pytest.raises(LookupError):
        batch.apply_async(given)
    assert batch.status().state is State.SENDING
    batch.resume(given)
    assert [one for one in effects if isinstance(one, int)] == [0, 1, 2]
    assert (batch.status().state, batch.status().failed) == (State.DONE, 1)


def test_a_kid_that_fails_has_failed(app: Celery, effects: Effects) -> None:
    parent, kid = three(app), Batch(app=app)
    kid.add(sig(app, "fails"))
    assert parent.apply_async([kid]).status().failed == 1


def test_cancelled_by_a_member(app: Celery, effects: Effects) -> None:
    batch = three(app).apply_async([sig(app, "cancels"), sig(app, "work", "never")])
    status = batch.status()
    assert (status.state, status.succeeded, status.revoked) == (State.CANCELLED, 1, 1)
    assert status.callbacks["on_success"] == "never"
    assert effects == [("complete", 1, 0)]
    assert status.finished is not None


def test_which_batch_it_is(app: Celery, effects: Effects) -> None:
    assert current_batch() is None
    batch = Batch(on_success=sig(app, "looks"), app=app)
    batch.apply_async([sig(app, "looks"), chain(sig(app, "work", 1), sig(app, "looks"))])
    assert effects == [batch.id, 1, batch.id, batch.id]
    app.tasks["looks"].delay()
    assert effects[-1] is None


def test_dropped(app: Celery) -> None:
    batch = three(app).apply_async([sig(app, "work", 1)])
    batch.drop()
    for ask in (batch.status, batch.wait, batch.cancel, batch.drop):
        with pytest.raises(UnknownBatch, match=batch.id):
            ask()


def test_callbacks_need_no_results(app: Celery, effects: Effects) -> None:
    app.conf.task_ignore_result = True
    three(app).apply_async([sig(app, "work", 1)])
    assert effects == [1, ("complete", 1, 0), ("success", 1, 0)]


def test_old_ones_are_forgotten(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_graceful.batches.eager.MOST", 2)
    first, *_, last = [Batch(app=app).apply_async() for _ in range(3)]
    with pytest.raises(UnknownBatch):
        first.status()
    assert last.status().state is State.DONE


def test_what_is_added_beside_what_is_there(app: Celery, effects: Effects) -> None:
    """The new one runs; that which runs is not begun again."""

    @app.task(name="page", shared=False)
    def page(number: int) -> None:
        effects.append(number)
        batch = current_batch()
        assert batch is not None
        if number == 1:
            batch.add([page.s(n).set(task_id=f"page-{n}") for n in (1, 2)])

    batch = Batch(on_complete=sig(app, "told"), app=app)
    batch.apply_async([page.s(1).set(task_id="page-1")])
    assert list(effects) == [1, 2, ("told", 2, 0)]
    assert batch.status().state is State.DONE


def test_a_key_keeps_nothing_back(app: Celery, effects: Effects) -> None:
    """One test after the other sends it."""
    for _ in range(2):
        batch = Batch(app=app, key="invoices").apply_async([app.tasks["work"].s(1)])
        found = Batch.find("invoices", app=app)
        assert found is not None
        assert (found.id, found.status().key) == (batch.id, "invoices")
    assert effects == [1, 1]
    assert Batch.find("others", app=app) is None
