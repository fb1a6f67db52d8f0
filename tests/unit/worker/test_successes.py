"""Celery's set of what has succeeded lately, with what was added last beside it."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Iterator

import pytest
from celery.app import trace
from celery.utils.collections import LimitedSet
from celery.worker import state
from celery.worker.consumer import consumer

from celery_graceful.worker.successes import gather, is_gathered, scatter
from tests.support.threads import in_threads
from tests.support.workers import TIMEOUT


@pytest.fixture
def ids() -> Iterator[LimitedSet]:
    ids = LimitedSet(maxlen=100, expires=3600)
    ids.add("before")
    gather(ids)
    yield ids
    assert is_gathered(ids)


def test_who_asks_finds_what_was_added(ids: LimitedSet) -> None:
    ids.add("one")
    ids.add("two")
    assert "one" in ids
    assert {*ids} == {"before", "one", "two"}
    ids.add("three")
    ids.add("one")
    assert len(ids) == 4
    ids.discard("one")
    assert "one" not in ids
    assert "three" in ids.as_dict()
    ids.add("four")
    ids.clear()
    assert not ids


def test_it_keeps_the_last_ones_as_ever(ids: LimitedSet) -> None:
    plain = LimitedSet(maxlen=100, expires=3600)
    for number in range(350):
        for each in ids, plain:
            each.add(number)
    assert {*ids} == {*plain}
    ids.add("old", now=1.0)
    ids.purge()
    assert "old" not in ids


def test_threads_add_ids_that_end_again(ids: LimitedSet, quick_switches: None) -> None:
    """Celery's set iterates over itself when an id is added a second time."""

    def end_again(_: int) -> None:
        for number in range(3000):
            ids.add(number % 150)
            assert number % 7 or number not in ids or len(ids) <= 101

    in_threads(6, end_again)
    assert 0 < len(ids) <= 100


def test_who_asks_while_another_one_sorts_finds_all(ids: LimitedSet, quick_switches: None) -> None:
    """Else a task that has succeeded, and comes again, would run again."""
    missed: list[int] = []
    turns = threading.Barrier(4)

    def take_part(who: int) -> None:
        for turn in range(100):
            if who == 0:
                for number in range(99):
                    ids.add(99 * turn - number)
            turns.wait(TIMEOUT)
            if who and 99 * turn not in ids:
                missed.append(turn)
            turns.wait(TIMEOUT)

    in_threads(4, take_part)
    assert not missed


def test_a_fork_beside_who_sorts(ids: LimitedSet) -> None:
    within, go_on = threading.Event(), threading.Event()

    class Slow(str):
        __slots__ = ()

        def __hash__(self) -> int:
            within.set()
            assert go_on.wait(TIMEOUT)
            return super().__hash__()

    ids.add(Slow("slow"))
    asking = threading.Thread(target=lambda: "slow" in ids)
    asking.start()
    assert within.wait(TIMEOUT)
    pid = os.fork()
    if not pid:
        ids.add("mine")
        os._exit(0 if "mine" in ids else 1)
    go_on.set()
    asking.join(TIMEOUT)
    assert os.waitpid(pid, 0) == (pid, 0)


def test_copies_are_celerys(ids: LimitedSet) -> None:
    ids.add("one")
    for made in copy.copy(ids), copy.deepcopy(ids), pickle.loads(pickle.dumps(ids)):
        assert type(made) is LimitedSet
        assert {*made} == {"before", "one"}


def test_it_is_a_set_as_ever_afterwards() -> None:
    ids = LimitedSet(maxlen=100)
    gather(ids)
    gather(ids)
    ids.add("one")
    scatter(ids)
    scatter(ids)
    assert type(ids) is LimitedSet
    assert {*ids} == {"one"}
    ids.add("two")
    assert "two" in ids


def test_somebody_elses_set_is_left_alone() -> None:
    class Own(LimitedSet):  # type: ignore[misc]
        pass

    ids = Own(maxlen=100)
    gather(ids)
    assert type(ids) is Own


def test_where_celery_asks_and_adds() -> None:
    """It is one set for all of them, and nobody looks into it without asking."""
    asks = [trace, consumer] if hasattr(consumer, "successful_requests") else [trace]  # not in 5.5
    assert all(one.successful_requests is state.successful_requests for one in asks)
    assert "successful_requests" in state.task_ready.__code__.co_names
    known = {"_data", "_heap", "_seq", "_heap_overload", "_refresh_heap", "_maybe_refresh_heap"}
    own = {name for name in [*vars(LimitedSet()), *vars(LimitedSet)] if name.startswith("_")}
    assert {n for n in own if not n.startswith("__")} - known - {"_is_current"} == set()
