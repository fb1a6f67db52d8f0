"""``assert_survives_interruptions``: it finds what is wrong, and nothing else."""

from __future__ import annotations

import re
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from celery.exceptions import Ignore, Reject

from celery_graceful import testing
from celery_graceful.testing import assert_survives_interruptions, interrupt_at, kill_at
from tests.unit.testing import planted
from tests.unit.testing.planted import BUGS, RIGHT, Planted, books, sent

WORLD = {
    "effects": lambda: (list(sent), dict(books)),
    "reset": lambda: (sent.clear(), books.clear()),
}


#: Whose effects are what they send.
SENDING = (
    "effect_before_its_checkpoint",
    "effect_behind_the_loop",
    "step_that_is_not_idempotent",
)


def named(each: Planted) -> str:
    return str(each.task.name).rpartition(".")[2]


@pytest.mark.parametrize("bug", BUGS, ids=named)
def test_a_planted_bug_is_found(bug: Planted) -> None:
    effects: Any = books
    if named(bug) in SENDING:
        effects = sent
    elif named(bug) == "time_used_as_state":  # what it is called differs in each run anyway
        effects = lambda: [*books.values()]  # noqa: E731
    check = partial(
        assert_survives_interruptions, bug.task, *bug.args, effects=effects, reset=WORLD["reset"]
    )
    with pytest.raises(AssertionError) as failed:
        check()
    said = str(failed.value)
    for words in (f"{bug.task.name} does not survive ", *bug.says):
        assert words in said
    # What it says can be pasted, and repeats it.
    (pasted,) = re.findall(r"schedules=(\[\[.*\]\])\)", said)
    with pytest.raises(AssertionError, match=re.escape(said.splitlines()[0])):
        check(schedules=eval(pasted, vars(testing)))


@pytest.mark.parametrize("task", RIGHT, ids=named)
def test_a_right_task_passes(task: Planted) -> None:
    assert_survives_interruptions(task.task, *task.args, **WORLD)


def test_without_kills_what_is_in_hand_is_done_once() -> None:
    task = planted.app.tasks["planted.effect_before_its_checkpoint"]
    assert_survives_interruptions(task, effects=sent, kills=False)


def test_who_differs_from_itself_is_told_so() -> None:
    task = planted.app.tasks["planted.time_used_as_state"]
    with pytest.raises(AssertionError, match="two runs that nobody disturbed"):
        assert_survives_interruptions(task, planted.ROWS, effects=books)


@planted.app.task(base=planted.GracefulTask, bind=True, name="planted.called_anew")
def _called_anew(self: Any, card: str) -> None:
    self.step(f"charge-{uuid4()}", sent.append, card)
    self.step("book", books.update, {card: True})


def test_a_step_without_a_fixed_name_is_told_so() -> None:
    """An interruption in it would never come."""
    with pytest.raises(AssertionError, match="the second has no step 'charge-"):
        assert_survives_interruptions(_called_anew, "card-7", kills=False, **WORLD)


def test_who_fails_anyway_is_told_so() -> None:
    task = planted.app.tasks["planted.loop"]
    with pytest.raises(AssertionError, match="although nobody disturbed it: TypeError"):
        assert_survives_interruptions(task, effects=books)


@planted.app.task(name="planted.successor")
def _successor(rows: list[str]) -> None:
    books["successor"] = len(rows)


@planted.app.task(base=planted.GracefulTask, bind=True, name="planted.replaced")
def _replaced(self: Any, rows: list[str]) -> None:
    for name in self.iterate(rows):
        books[name] = True
    self.replace(_successor.s(rows))


@planted.app.task(base=planted.GracefulTask, bind=True, name="planted.ends_by")
def _ends_by(self: Any, rows: list[str], error: type[Exception], *, on_resume: bool) -> None:
    for name in self.iterate(rows):
        if self.resumed:
            books["resumed"] = True
        books[name] = True
    if self.resumed or not on_resume:
        raise error("enough")


def test_a_task_may_end_by_a_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(planted.app.conf, "task_always_eager", True)
    assert_survives_interruptions(_replaced, planted.ROWS, **WORLD)
    assert books["successor"] == len(planted.ROWS)


def test_a_task_may_end_by_ignore() -> None:
    with pytest.raises(AssertionError, match="too much: 'resumed'") as failed:
        assert_survives_interruptions(
            _ends_by, planted.ROWS, Ignore, on_resume=False, effects=books
        )
    assert "in the end" not in str(failed.value)
    keys = lambda: sorted(books.keys() - {"resumed"})  # noqa: E731
    assert_survives_interruptions(
        _ends_by, planted.ROWS, Ignore, on_resume=False, effects=keys, reset=books.clear
    )


@pytest.mark.parametrize(("error", "how"), [(Reject, "ignored"), (ValueError, "failed")])
def test_a_task_may_not_end_by_another_error(error: type[Exception], how: str) -> None:
    with pytest.raises(AssertionError, match=f"has {how} although nobody disturbed it"):
        assert_survives_interruptions(_ends_by, planted.ROWS, error, on_resume=False, effects=books)
    with pytest.raises(AssertionError, match=f"it has {how} in the end: "):
        assert_survives_interruptions(_ends_by, planted.ROWS, error, on_resume=True, effects=books)


def test_what_is_left_out_is_done_again_as_well() -> None:
    """A worker may die between that end and its acknowledgement."""
    done: list[str] = []

    @planted.app.task(base=planted.GracefulTask, name="planted.left_out", shared=False)
    def left_out() -> None:
        done.append("sent")
        raise Ignore

    with pytest.raises(AssertionError, match="2 times instead of 1"):
        assert_survives_interruptions(left_out, effects=lambda: done, reset=done.clear)


def test_effects_may_be_lazy() -> None:
    """As a query set: looked at later, it would say what the next run has done."""
    task = planted.app.tasks["planted.rows_removed_while_it_runs"]
    for effects in (lambda: (key for key in books), lambda: books.keys()):
        with pytest.raises(AssertionError, match="missing: 'bob'"):
            assert_survives_interruptions(task, effects=effects, reset=WORLD["reset"])


@pytest.mark.parametrize("schedules", [[interrupt_at(row=1)], [[interrupt_at]], ["row 1"]])
def test_schedules_are_lists_of_events(schedules: Any) -> None:
    task = planted.app.tasks["planted.loop"]
    with pytest.raises(TypeError, match="give a list of schedules, each a list"):
        assert_survives_interruptions(task, planted.ROWS, **WORLD, schedules=schedules)


def test_no_schedule_at_all_tries_nothing() -> None:
    task = planted.app.tasks["planted.effect_before_its_checkpoint"]
    with pytest.raises(ValueError, match="schedules= is empty: nothing would be tried"):
        assert_survives_interruptions(task, effects=sent, schedules=[])


def test_effects_have_to_be_seen_somewhere() -> None:
    task = planted.app.tasks["planted.loop"]
    with pytest.raises(TypeError, match="effects=7: give a list"):
        assert_survives_interruptions(task, planted.ROWS, effects=7)


_database: dict[str, int] = {}
_mails: list[str] = []


@planted.app.task(base=planted.GracefulTask, bind=True, name="planted.two_worlds")
def _two_worlds(self: Any, rows: list[str]) -> None:
    for name in self.iterate(rows):
        _database[name] = 1
    if "done" not in _mails and len(_database) == len(rows):
        _mails.append("done")


def test_what_stands_for_the_world_is_left_alone() -> None:
    """A fake database is no memory of the task."""
    world = {"effects": _mails, "schedules": [[interrupt_at(row=2)], [kill_at(row=2)]]}
    with pytest.raises(AssertionError, match=r"has anew: _database \(if not: outside=\)"):
        assert_survives_interruptions(_two_worlds, planted.ROWS, **world)
    assert_survives_interruptions(_two_worlds, planted.ROWS, outside=[_database], **world)
