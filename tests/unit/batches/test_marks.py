"""Headers of members: on each of their tasks, and on nothing else."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.canvas import Signature

from celery_graceful.batches.marks import BATCH, CALLBACK, LAST, Mark, hand_on, mark, member_of
from celery_graceful.batches.member_part import end_of_success, fields_of, part_of
from celery_graceful.batches.model import End, Outcome

OURS = {BATCH: "b/m"}


@pytest.fixture
def app() -> Celery:
    app = Celery("marks", broker="memory://", backend="cache+memory://", set_as_current=False)

    @app.task(name="add", shared=False, bind=True)
    def add(self: Any, *args: Any) -> None: ...

    return app


def add(app: Celery, *args: Any) -> Signature:
    return app.tasks["add"].s(*args)


def leaves(sig: Any) -> list[Any]:
    """The signatures of single tasks that one is made of."""
    if sig.get("subtask_type") == "chord":
        header = sig["kwargs"]["header"]
        parts = [*(header["kwargs"]["tasks"] if isinstance(header, dict) else header)]
        return [leaf for part in [*parts, sig["kwargs"]["body"]] for leaf in leaves(part)]
    if sig.get("subtask_type") in ("chain", "group"):
        return [leaf for part in sig["kwargs"]["tasks"] for leaf in leaves(part)]
    return [sig]


def test_a_task_keeps_its_own_headers(app: Celery) -> None:
    sig = add(app, 1).set(headers={"mine": 1})
    mark(sig, OURS)
    assert sig.options["headers"] == {"mine": 1, **OURS}


def test_each_task_of_a_canvas_is_marked_and_what_is_linked_is_not(app: Celery) -> None:
    linked, errback = add(app, "linked"), add(app, "errback")
    first = add(app, 1)
    first.link(linked)
    first.link_error(errback)
    sig = chain(
        first,
        group(add(app, 2), chain(add(app, 3), add(app, 4))),
        add(app, 5),
        chord([add(app, 6), group(add(app, 7))], chain(add(app, 8), add(app, 9))),
    )
    mark(sig, OURS)
    found = leaves(sig)
    assert sorted(leaf.args[0] for leaf in found) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert all(leaf.options["headers"] == OURS for leaf in found)
    assert "headers" not in linked.options
    assert "headers" not in errback.options


def test_what_was_read_from_a_message_is_marked_too(app: Celery) -> None:
    plain = {"task": "add", "args": [1], "kwargs": {}, "options": {}, "subtask_type": None}
    for canvas in (
        {"task": "celery.chain", "kwargs": {"tasks": [plain, plain]}, "subtask_type": "chain"},
        {"task": "celery.group", "kwargs": {"tasks": [plain]}, "subtask_type": "group"},
        {
            "task": "celery.chord",
            "kwargs": {"header": [plain], "body": plain, "kwargs": {}},
            "subtask_type": "chord",
        },
    ):
        sig = Signature.from_dict({"args": [], "options": {}, "immutable": False, **canvas}, app)
        mark(sig, OURS)
        assert all(leaf["options"]["headers"] == OURS for leaf in leaves(sig))


def test_headers_that_are_set_on_a_chain_keep_ours(app: Celery) -> None:
    """Celery has them take the place of those of its first task."""
    sig = chain(add(app, 1), add(app, 2)).set(headers={"mine": 1})
    mark(sig, OURS)
    assert sig.options["headers"] == {"mine": 1, **OURS}


@pytest.mark.parametrize("value", [None, "", "b", 7, b"b/m"])
def test_what_is_no_mark(value: Any) -> None:
    assert member_of({BATCH: value}) is None
    assert member_of({}) is None
    assert member_of(None) is None


def test_a_mark_is_read_again() -> None:
    assert member_of({BATCH: str(Mark("b", "m"))}) == Mark("b", "m")
    assert member_of({BATCH: "b/with/slashes"}) == Mark("b", "with/slashes")


def test_what_replaces_a_member_is_one(app: Celery) -> None:
    task = app.tasks["add"]
    seen: list[Any] = []
    task.on_replace = seen.append
    hand_on(task)
    hand_on(task)
    task.push_request(headers={BATCH: "b/m", "theirs": 1}, id="m")
    task.replace(add(app, 1))
    task.pop_request()
    task.push_request(headers={CALLBACK: "b/on_success"}, id="m")
    task.replace(group(add(app, 1), add(app, 2)))
    task.pop_request()
    task.push_request(headers=None, id="m")
    task.replace(add(app, 1))
    task.pop_request()
    one, several, nobody = seen
    assert one.options["headers"] == {BATCH: "b/m"}
    assert [leaf["options"]["headers"] for leaf in leaves(several)] == [
        {CALLBACK: "b/on_success"}
    ] * 3
    assert "headers" not in nobody.options


@pytest.mark.parametrize("several", [False, True])
def test_what_follows_a_task_that_is_replaced_keeps_its_own_marks(
    app: Celery, several: bool
) -> None:
    """The first task of a body is the callback of its chord; what follows would be left out."""
    task = app.tasks["add"]
    seen: list[Any] = []
    task.on_replace = seen.append
    hand_on(task)
    follows = [add(app, number).set(task_id=f"after {number}") for number in range(2)]
    after = group(follows) if several else chain(follows)
    request = {"id": "body", "headers": {CALLBACK: "b/on_complete", LAST: "body"}}
    task.push_request(**request, chain=[after] if several else follows[::-1])
    task.replace(chain(add(app, 1), add(app, 2)))
    task.pop_request()
    marked = {
        leaf["options"]["task_id"]: leaf["options"].get("headers") for leaf in leaves(seen[0])
    }
    assert marked.pop("body") == request["headers"]
    assert (marked.pop("after 0"), marked.pop("after 1")) == (None, None)
    assert list(marked.values()) == [request["headers"]]


def test_garbage_collection_passes_over_ends_that_are_kept() -> None:
    part = part_of({BATCH: "b/m"})
    assert part is not None
    end, success = part.end(Outcome.FAILED), end_of_success({BATCH: "b/m"}, "m")
    gc.collect()
    assert not gc.is_tracked(end)
    assert not gc.is_tracked(success)
    assert end == End("b", "m", Outcome.FAILED)
    assert success is not None
    assert fields_of(success) == End("b", "m", Outcome.SUCCEEDED)
