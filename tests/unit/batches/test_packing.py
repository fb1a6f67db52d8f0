"""Members as they are kept in the store."""

from __future__ import annotations

from datetime import datetime, timezone
from uuid import UUID

import pytest
from celery import Celery, chain, chord, group
from kombu.exceptions import ContentDisallowed, EncodeError

from celery_graceful.batches.marks import Mark
from celery_graceful.batches.packing import pack, unpack

MEMBER = Mark("b", "m")


@pytest.fixture
def app() -> Celery:
    app = Celery("packing", broker="memory://", backend="cache+memory://", set_as_current=False)

    @app.task(name="add", shared=False)
    def add(*args: object) -> None: ...

    @app.task(name="pickled", shared=False, serializer="pickle")
    def pickled(*args: object) -> None: ...

    return app


def test_a_signature_comes_back_with_all_its_options(app: Celery) -> None:
    task = app.tasks["add"]
    when = datetime(2030, 1, 1, tzinfo=timezone.utc)
    sig = task.si(UUID(int=1), when, k="ö").set(eta=when, queue="q", headers={"mine": 1})
    sig.link(task.s("linked"))
    found = unpack(app, pack(app, sig), MEMBER)
    assert (found.task, [*found.args], found.kwargs) == (sig.task, [*sig.args], sig.kwargs)
    assert found.options.pop("task_id") == "m"
    assert found.options.pop("headers") == {"mine": 1, "graceful_batch": "b/m"}
    assert [one["args"] for one in found.options.pop("link")] == [["linked"]]
    assert found.options == {"eta": when, "queue": "q"}
    assert found.app is app
    assert found.immutable


def test_canvases_come_back_as_what_they_are(app: Celery) -> None:
    one = app.tasks["add"].s
    for sig in (
        chain(one(1), one(2)),
        chord([one(1), one(2)], one(3)),
        chain(group(one(1), one(2)), one(3)),
    ):
        found = unpack(app, pack(app, sig), MEMBER)
        assert type(found) is type(sig)
        assert found.freeze().id == "m"


def test_the_last_task_of_a_canvas_has_the_id(app: Celery) -> None:
    one = app.tasks["add"].s
    sent = unpack(app, pack(app, chain(one(1), one(2), one(3))), MEMBER)
    steps, results = sent.prepare_steps((), {}, sent.tasks, app=app, last_task_id=sent.id)
    assert steps[0].id == results[0].id == "m"
    assert all(step.options["headers"] == {"graceful_batch": "b/m"} for step in steps)
    sent = unpack(app, pack(app, chord([one(1), one(2)], chain(one(3), one(4)))), MEMBER)
    assert sent.body.freeze().id == "m"


def test_the_serializer_is_that_of_the_task(app: Celery) -> None:
    task = app.tasks["pickled"]
    packed = pack(app, task.s({1, 2}))
    with pytest.raises(ContentDisallowed):
        unpack(app, packed, MEMBER)
    app.conf.accept_content = ["json", "pickle"]
    assert unpack(app, packed, MEMBER).args == ({1, 2},)
    given = app.tasks["add"].s({1}).set(serializer="pickle")
    assert unpack(app, pack(app, given), MEMBER).args == ({1},)


def test_what_cannot_be_serialized_is_said(app: Celery) -> None:
    with pytest.raises(EncodeError):
        pack(app, app.tasks["add"].s(object()))


def test_it_is_small(app: Celery) -> None:
    assert len(pack(app, app.tasks["add"].s(12345))) < 150
