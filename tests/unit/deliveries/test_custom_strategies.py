"""Which deliveries a call of the pool is for, and what of it is left."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from celery import Celery
from celery.app.task import Task

from celery_graceful.deliveries.custom_strategies import _Search, has_own_strategy
from celery_graceful.deliveries.stage import Stage

TASK: Any = object()


class Held:
    def __init__(self, id: str, stage: Stage = Stage.RECEIVED) -> None:
        self.id, self.stage, self.task = id, stage, TASK

    @property
    def has_left(self) -> bool:
        return self.stage is Stage.RELEASED


def named(*ids: str) -> list[Any]:
    return [SimpleNamespace(id=each) for each in ids]


def search(*deliveries: Any) -> _Search:
    return _Search(deliveries)


def test_what_waits_is_found_in_objects_strings_and_mappings() -> None:
    a, b, c = Held("a"), Held("b"), Held("c")
    args: Any = (1, (named("a"),), {"ids": ["b"]}, "c", None)
    looked = search(a, b, c)
    assert looked.through(args) == args
    assert set(looked.found()) == {a, b, c}
    assert not looked.left


def test_what_has_gone_back_is_taken_out_of_lists() -> None:
    a, b = Held("a"), Held("b", Stage.RELEASED)
    looked = search(a, b)
    args = looked.through((TASK, (named("a", "b"),), ["b", "a"]))
    assert args == (TASK, (named("a"),), ["a"])
    assert looked.found() == [a]
    looked = search(b)
    assert looked.through((named("b"), "b")) == ([], "b")
    assert looked.left
    assert not looked.found()


def test_a_task_that_was_delivered_twice_runs_once_for_each_that_is_left() -> None:
    old, new = Held("a", Stage.RELEASED), Held("a")
    looked = search(old, new)
    assert looked.through([named("a", "a"), ["a", "a"]]) == [named("a"), ["a"]]
    assert looked.found() == [new]
    again = Held("a")
    looked = search(new, again)
    assert looked.through(named("a", "a")) == named("a", "a")
    assert set(looked.found()) == {new, again}


def test_what_is_in_the_pool_or_has_ended_stays_as_it_is() -> None:
    looked = search(Held("a", Stage.RUNNING), Held("b", Stage.FINISHED))
    assert looked.through(named("a", "b")) == named("a", "b")
    assert looked.others
    assert not looked.found()


def test_a_call_that_names_the_task_alone_is_of_all_that_waits() -> None:
    a, b = Held("a"), Held("b", Stage.RELEASED)
    looked = search(a, b)
    assert looked.through((TASK, 3)) == (TASK, 3)
    assert looked.found() == [a]
    looked = search(a)
    looked.through(("something else", 3))
    assert looked.found() == []


def test_who_has_a_strategy_of_its_own() -> None:
    app = Celery(set_as_current=False)

    class Own(Task):
        def Strategy(self, task: Any, app: Any, consumer: Any) -> None: ...

    def task() -> None: ...

    assert not has_own_strategy(app.task(task, name="usual"))
    assert has_own_strategy(app.task(task, name="own", base=Own))
