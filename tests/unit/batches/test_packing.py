"""Members as they are kept in the store."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

import pytest
from celery import Celery, Signature, chain, chord, group
from kombu.exceptions import ContentDisallowed, EncodeError

from celery_graceful.batches.callbacks import check, made
from celery_graceful.batches.marks import Mark, callback_id
from celery_graceful.batches.members import Members, last_of
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


def of_one(app: Celery) -> list[Any]:
    """Signatures whose last task, the ninth, is in a group of one."""
    one, last = app.tasks["add"].s, app.tasks["add"].si(9)
    return [
        chord([one(1), one(2)], group(last)),
        chord([one(1), one(2)], group(sig for sig in [last])),
        chord([one(1), one(2)], group([group([last])])),
        chord([one(1), one(2)], group(chain(one(3), last))),
        chord([one(1), one(2)], group(chord([one(3), one(4)], group(last)))),
        chain(one(1), group([group([last])])),
        chain(one(1), chord([one(2), one(3)], group(last))),
    ]


def test_the_last_task_has_the_id_in_a_group_of_one(app: Celery) -> None:
    """Where Celery keeps it for the group, the task gets a random one, and never ends it."""
    members = Members(app, "b", counted=True)
    for given in of_one(app):
        before = repr(given)
        member = members.make(given, "a member")
        assert repr(given) == before
        for sig in (member.signature, unpack(app, member.packed, Mark("b", member.id))):
            assert sig.freeze().id == member.id
            assert [*last_of(sig, "").args] == [9]
            assert not any(isinstance(each, group) for each in lasts_of(sig))


def lasts_of(sig: Any) -> Iterator[Any]:
    while sig.get("subtask_type"):
        sig = sig.body if isinstance(sig, chord) else sig.tasks[-1]
        yield sig


def test_a_callback_in_a_group_of_one(app: Celery) -> None:
    last = app.tasks["add"].si(9)
    for given in (group(last), group([group([last])]), group(chain(last, last)), *of_one(app)):
        kept = made(app, "b", "on_complete", check("on_complete", given))
        sig = Signature.from_dict(kept.signature, app=app)
        assert not isinstance(sig, group)
        assert not any(isinstance(each, group) for each in lasts_of(sig))
        assert sig.freeze().id == kept.id == callback_id("b", "on_complete")
    assert not made(app, "b", "on_complete", check("on_complete", group(last))).takes_summary
    with_summary = check("on_complete", group(app.tasks["add"].s()))
    assert made(app, "b", "on_complete", with_summary).takes_summary


def test_options_of_a_group_of_one_are_those_of_its_task(app: Celery) -> None:
    last = app.tasks["add"].si(9).set(priority=1)
    of = group(last).set(queue="of-the-group", priority=3)
    of.link_error(app.tasks["add"].s("errback"))
    of.freeze()
    found = check("on_complete", chord([last], of)).body
    assert (found.task, found.args) == ("add", (9,))
    assert (found.options["queue"], found.options["priority"]) == ("of-the-group", 3)
    assert [one["args"] for one in found.options["link_error"]] == [("errback",)]
    assert "queue" not in last.options


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
