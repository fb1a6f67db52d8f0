"""Loops, steps and state across deliveries, in process, with a real store."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from contextlib import suppress
from itertools import count
from time import monotonic

import pytest
from celery.app.task import Context

from celery_graceful import (
    CheckpointError,
    GracefulTask,
    Interrupted,
    TooManyInterruptions,
    sources,
)
from celery_graceful.checkpoints.checkpoint import key_of
from celery_graceful.checkpoints.codec import decode
from celery_graceful.checkpoints.resume import count_given_up
from celery_graceful.operations.checkpoints import read
from celery_graceful.store.app_stores import find_store
from celery_graceful.testing.memory_store import MemoryStore
from tests.support.deliveries import Kill, bench


@pytest.fixture
def b(redis_db):
    with bench(redis_db.client, graceful_store=redis_db.url) as made:
        yield made


class Once:
    """True the first time only."""

    def __init__(self):
        self.seen = set()

    def __call__(self, key):
        fresh = key not in self.seen
        self.seen.add(key)
        return fresh


# -- loops ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", [range, lambda n: list(range(n)), lambda n: iter(range(n))])
@pytest.mark.parametrize("at", [0, 1, 8, 9])
def test_an_interrupt_repeats_no_item(b, make, at):
    log, once = [], Once()

    def task(self):
        for item in self.iterate(make(10)):
            log.append(item)
            if item == at and once(item):
                b.interrupt()
        return self.resumed

    assert b.run(b.task(task)) == ("SUCCESS", True)
    assert log == list(range(10))


def test_an_iterable_is_walked_and_a_sequence_is_not(b):
    class Items(list):
        def __iter__(self):
            raise AssertionError("walked")

    def task(self):
        return list(self.iterate(Items("abcdef"), name="x"))

    made = b.task(task)
    b.client.hset(key_of(made.name, "t"), "c:x", '["sequence",4,false]')
    assert b.deliver(made, id="t") == ("SUCCESS", ["e", "f"])


def test_a_long_walk_can_be_interrupted(b):
    walked = count()

    def numbers():
        for number in walked:
            if number == 5000:
                b.interrupt()
            yield number

    def task(self):
        for _ in self.iterate(numbers(), name="x"):
            raise AssertionError

    made = b.task(task)
    b.client.hset(key_of(made.name, "t"), "c:x", '["sequence",100000,false]')
    assert b.deliver(made, id="t")[0] == "IGNORED"
    assert next(walked) < 7000
    assert b.saved(made, "t")["c:x"] == '["sequence",100000,false]'


@pytest.mark.parametrize("kill", range(6))
def test_every_item_saved_repeats_one_item_a_kill(b, kill):
    log, once = [], Once()

    def task(self):
        for item in self.iterate(range(6), every=1):
            log.append(item)
            if item == kill and once(item):
                raise Kill

    b.run(b.task(task))
    assert log == [*range(kill + 1), *range(kill, 6)]


def test_every_three_items_saved(b):
    log, once = [], Once()

    def task(self):
        for item in self.iterate(range(9), every=3):
            log.append(item)
            if item == 7 and once(item):
                raise Kill

    b.run(b.task(task))
    assert log == [*range(8), 6, 7, 8]


def test_interval(b):
    log, once = [], Once()

    def task(self):
        for item in self.iterate(range(4)):
            log.append(item)
            if item == 2 and once(item):
                raise Kill

    b.run(b.task(task, checkpoint_interval=3600))
    assert log == [0, 1, 2, 0, 1, 2, 3]
    log.clear()
    once.seen.clear()
    b.run(b.task(task, checkpoint_interval=0))
    assert log == [0, 1, 2, 2, 3]


def test_saved_on_an_exception(b):
    def task(self):
        for item in self.iterate(range(5)):
            if item == 3:
                raise ValueError

    made = b.task(task)
    assert b.deliver(made, id="t")[0] == "FAILURE"
    assert b.saved(made, "t")["c:loop"] == '["sequence",3,false]'


def test_loops_side_by_side(b):
    """They would go on from places that do not belong together."""
    given = []

    def task(self):
        pairs = zip(self.iterate("abc", name="a"), self.iterate("xyz", name="b"), strict=True)
        for pair in pairs:
            given.append(pair)

    state, exc = b.run(b.task(task))[:2]
    assert (state, type(exc)) == ("FAILURE", CheckpointError)
    assert "goes on while an item of 'b' is in hand" in str(exc)
    assert given == [("a", "x")]


def test_a_loop_that_is_left_open_within_an_item(b):
    """It belongs to that item: nothing goes on side by side."""
    given = []

    def task(self):
        for one in self.iterate("ab"):
            within = iter(self.iterate("xyz"))
            given.append((one, next(within)))

    assert b.run(b.task(task))[0] == "SUCCESS"
    assert given == [("a", "x"), ("b", "x")]


def test_a_finished_loop_does_not_run_again(b):
    log, once = [], Once()

    def task(self):
        for item in self.iterate("ab"):
            log.append(item)
        for item in self.iterate([]):
            log.append(item)
        for item in self.iterate("cd", every=1):
            log.append(item)
            if once(item):
                raise Kill

    b.run(b.task(task))
    assert log == list("abccdd")


@pytest.mark.parametrize("stop", ["interrupt", "kill"])
def test_nested(b, stop):
    log, once = [], Once()

    def task(self):
        for letter in self.iterate("abc", name="letters"):
            for number in self.iterate(range(3), name="numbers", every=1):
                log.append((letter, number))
                if once((letter, number)):
                    if stop == "kill":
                        raise Kill
                    b.interrupt()

    made = b.task(task)
    assert b.run(made, id="t")[0] == "SUCCESS"
    times = 2 if stop == "kill" else 1
    assert log == [(x, n) for x in "abc" for n in range(3) for _ in range(times)]
    assert [f for f in b.saved(made, "t") if f.startswith("c:")] == ["c:letters"]


def test_break_and_go_on(b):
    log, once = [], Once()

    def task(self):
        for item in self.iterate(range(5), name="first"):
            log.append(item)
            if item == 2:
                break
        for item in self.iterate("ab", name="second"):
            log.append(item)
            if once(item):
                b.interrupt()

    b.run(b.task(task))
    # The item of the break was not finished, so each run comes to it.
    assert log == [0, 1, 2, "a", 2, "b", 2]


def test_own_cursor_is_the_one_that_counts(b):
    committed = []

    def task(self):
        rows = self.iterate(range(6), cursor=committed[-1][1] if committed else None)
        for row in rows:
            committed.append((row, rows.cursor))
            if len(committed) in (2, 4):
                raise Kill

    b.run(b.task(task))
    assert committed == [(n, n + 1) for n in range(6)]


@pytest.mark.parametrize("own", [True, False])
def test_a_task_with_an_own_cursor_is_not_said_to_start_over(b, own):
    """Interrupted by itself, or given up by others and delivered again."""
    seen = []

    def task(self):
        for row in self.iterate(range(9), **({"cursor": len(seen)} if own else {})):
            if len(seen) == 3:
                b.interrupt()
                self.sleep(0)
            if len(seen) == 6:
                seen.append(read(store, made.name, "t"))
                raise Kill
            seen.append(row)

    made = b.task(task, checkpoint_interval=3600)
    store = find_store(b.app)
    assert b.deliver(made, id="t")[0] == "IGNORED"
    saved = read(store, made.name, "t")
    assert (saved.interruptions, saved.own_cursor, saved.is_empty) == (1, own, False)
    assert bool(saved.loops) is not own
    b.client.delete(key_of(made.name, "t"))
    count_given_up(made, Context(id="t"), monotonic())
    seen.append("further")
    b.new_worker()
    with pytest.raises(Kill):
        b.deliver(made, id="t", redelivered=True)
    assert (seen[-1].interruptions, seen[-1].is_empty) == (1, not own)


@pytest.mark.parametrize("cursor", [-1, "3", 2.0, True])
def test_a_cursor_is_checked(b, cursor):
    def task(self):
        list(self.iterate([1, 2], cursor=cursor))

    state, exc = b.deliver(b.task(task))
    assert state == "FAILURE"
    assert isinstance(exc, CheckpointError)
    assert repr(cursor) in str(exc)


def test_another_kind_of_source(b, tmp_path):
    path = tmp_path / "file"
    path.write_text("1\n2\n")
    first = Once()

    def task(self):
        for _ in self.iterate([1, 2] if first(1) else sources.lines(path), name="x"):
            b.interrupt()

    made = b.task(task)
    assert b.deliver(made, id="t")[0] == "IGNORED"
    b.new_worker()
    state, exc = b.deliver(made, id="t", redelivered=True)
    assert state == "FAILURE"
    assert "was saved over a sequence and now runs over a lines" in str(exc)


@pytest.mark.parametrize("source", [{1, 2}, frozenset("ab"), 3])
def test_what_has_no_order_is_refused(b, source):
    def task(self):
        self.iterate(source)

    with pytest.raises(CheckpointError):
        b.task(task)()


def test_a_cursor_that_cannot_be_saved_is_refused_at_the_first_item(b):
    seen = []

    class Odd(sources.Source):
        def pairs(self, cursor):
            yield object(), 1
            yield object(), 2

    def task(self):
        for item in self.iterate(Odd()):
            seen.append(item)

    state, exc = b.deliver(b.task(task))
    assert (state, seen) == ("FAILURE", [1])
    assert "the cursor of 'loop' is a builtins.object" in str(exc)


def test_once_only(b):
    def task(self):
        loop = self.iterate([1])
        return list(loop), list(loop)

    assert "call iterate() again" in str(b.deliver(b.task(task))[1])


def test_a_shield_is_not_broken(b):
    log = []

    def task(self):
        with self.shield():
            for item in self.iterate(range(5)):
                b.interrupt()
                log.append(item)
        raise AssertionError

    assert b.deliver(b.task(task))[0] == "IGNORED"
    assert log == [0, 1, 2, 3, 4]


def test_an_item_whose_shield_was_interrupted_is_not_repeated(b):
    log, after, once = [], [], Once()

    def task(self):
        for item in self.iterate(range(4)):
            with self.shield():
                if item == 2 and once("interrupt"):
                    b.interrupt()
                log.append(item)
            after.append(item)
        return "done"

    assert b.run(b.task(task)) == ("SUCCESS", "done")
    assert log == after == [0, 1, 2, 3]


def test_a_body_of_many_shields_ends_at_the_next_one(b):
    log, once = [], Once()

    def task(self):
        for page in self.iterate(["a", "b"], every=1):
            for row in range(5):
                with self.shield():
                    log.append(f"{page}{row}")
                    if (page, row) == ("b", 1) and once("interrupt"):
                        b.interrupt()
        return "done"

    assert b.run(b.task(task)) == ("SUCCESS", "done")
    first = ["a0", "a1", "a2", "a3", "a4"]
    assert log == [*first, "b0", "b1", "b2", "b0", "b1", "b2", "b3", "b4"]


# -- steps ---------------------------------------------------------------------------


def test_steps_run_once(b):
    calls, once = [], Once()

    def call(what):
        calls.append(what)
        return {"what": what, "at": dt.date(2024, 1, 1)}

    def task(self):
        first = self.step("first", call, "a")
        if once("first"):
            raise Kill
        again = self.step("first", call, what="b")
        if once("again"):
            b.interrupt()
        third = self.step("third", call, "c")
        return first, again, third

    state, result = b.run(b.task(task))
    assert state == "SUCCESS"
    assert [r["what"] for r in result] == calls == ["a", "b", "c"]
    assert result[0]["at"] == dt.date(2024, 1, 1)


def test_steps_in_loops(b):
    calls, once = [], Once()

    def task(self):
        out = []
        for letter in self.iterate("ab"):
            for number in self.iterate(range(2)):
                out.append(self.step("charge", lambda n=number, x=letter: calls.append((x, n))))
                if once((letter, number)):
                    raise Kill

    made = b.task(task, checkpoint_interval=3600)
    b.run(made, id="t")
    assert calls == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert not [f for f in b.saved(made, "t") if f.startswith("s:")]


def test_a_result_that_cannot_be_saved(b):
    def task(self):
        self.step("x", lambda: {"a": [{1}]})

    _, exc = b.deliver(b.task(task))
    assert "the result of step 'x'['a'][0] is a builtins.set" in str(exc)


def two_versions(b, caplog, old, new):
    """Run the steps of one version until it is killed, then those of the next."""
    steps = {"now": old}

    def task(self):
        for name in steps["now"]:
            self.step(name, lambda: None)
        if steps["now"] is old:
            raise Kill

    made = b.task(task)
    with pytest.raises(Kill):
        b.deliver(made, id="t")
    steps["now"] = new
    assert b.deliver(made, id="t", redelivered=True)[0] == "SUCCESS"
    return "\n".join(message for message in caplog.messages if "step" in message)


def test_a_removed_step_is_reported(b, caplog):
    assert "the step 'b' was saved by an earlier run" in two_versions(b, caplog, "ab", "a")


def test_a_renamed_step_is_reported(b, caplog):
    said = two_versions(b, caplog, "ab", "aB")
    assert "the step 'B' runs for the first time, although 'b'" in said


def test_reordered_steps_are_reported(b, caplog):
    assert "'a' was saved before the one that now comes first" in two_versions(
        b, caplog, "ab", "ba"
    )


def test_an_added_step_is_not(b, caplog):
    assert two_versions(b, caplog, "ab", "abc") == ""


def test_a_step_removed_from_a_loop_is_reported(b, caplog):
    once = Once()

    def task(self):
        for item in self.iterate(range(3), every=1):
            if once(item) and item == 1:
                self.step("gone", lambda: None)
                raise Kill

    assert b.run(b.task(task))[0] == "SUCCESS"
    assert "the step 'loop@1/gone' was saved by an earlier run" in "\n".join(caplog.messages)


# -- state ---------------------------------------------------------------------------


def test_state(b):
    seen = []

    def task(self):
        seen.append((self.state, self.resumed, self.interruptions))
        number = (self.state or {"n": 0})["n"]
        if number == 2:
            b.interrupt()
        if number < 3:
            self.checkpoint({"n": number + 1})
            raise Kill
        self.checkpoint()
        return self.state

    assert b.run(b.task(task)) == ("SUCCESS", {"n": 3})
    assert seen == [
        (None, False, 0),
        ({"n": 1}, True, 0),
        ({"n": 2}, True, 0),
        ({"n": 3}, True, 1),
    ]


def test_a_state_assigned_is_saved_with_the_cursor(b):
    once = Once()

    def task(self):
        for number in self.iterate(range(1, 11), every=3):
            if number in (4, 6) and once(number):
                raise Kill
            if number == 8 and once(number):
                b.interrupt()
            self.state = (self.state or 0) + number
        return self.state

    assert b.run(b.task(task)) == ("SUCCESS", 55)


@pytest.mark.parametrize("where", ["first", "between", "last"])
@pytest.mark.parametrize("cut", ["sleep", "step", "checkpoint", "interruptible", "kill", "failure"])
def test_a_state_is_that_of_the_last_item_done(b, where, cut):
    """Wherever in the body it is assigned, and wherever that ends."""
    once = Once()

    def stop(self, key):
        if not once(key):
            return
        if cut == "kill":
            raise Kill
        if cut == "failure":
            raise LookupError
        b.interrupt()
        if cut == "interruptible":
            with self.interruptible():
                raise AssertionError("not raised")
        {
            "sleep": lambda: self.sleep(0),
            "step": lambda: self.step("a", int),
            "checkpoint": self.checkpoint,
        }[cut]()

    def task(self):
        total = self.state or 0
        for number in self.iterate(range(1, 8), every=2):
            if number in (1, 4, 5):
                stop(self, (number, 1))
            total += number
            if where == "first":
                self.state = total
                assert self.state == total, "the task sees what it has assigned"
            if number in (2, 4, 7):
                stop(self, (number, 2))
            self.step("b", int)
            if where == "between":
                self.state = total
            if number in (1, 3, 7):
                stop(self, (number, 3))
            if where == "last":
                self.state = total
        return self.state

    made, id = b.task(task), "the-id"
    for delivery in range(20):
        b.new_worker()
        try:
            state, result = b.deliver(made, id=id, redelivered=delivery > 0)
        except Kill:
            continue
        if state == "SUCCESS":
            break
    assert (state, result) == ("SUCCESS", 28)
    assert delivery == 9, "it was cut off nine times"


def test_a_state_in_loops_that_nest(b):
    once = Once()

    def task(self):
        for outer in self.iterate(range(3)):
            for inner in self.iterate(range(4)):
                self.state = [*(self.state or []), (outer, inner)]
                if (outer, inner) in ((0, 2), (1, 0), (2, 3)) and once((outer, inner)):
                    b.interrupt()
                    self.sleep(0)
            self.state = [*self.state, outer]
            if outer == 1 and once(outer):
                b.interrupt()
                self.sleep(0)
        return self.state

    expected = []
    for outer in range(3):
        expected += [*((outer, inner) for inner in range(4)), outer]
    assert b.run(b.task(task)) == ("SUCCESS", expected)


@pytest.mark.parametrize("how", ["break", "exception", "outer body"])
def test_a_state_of_an_item_that_is_left_is_not_saved_by_another_loop(b, how):
    once = Once()

    def add(self, number):
        self.state = (self.state or 0) + number

    def left_early(self):
        for number in self.iterate([1, 10, 100, 1000]):
            add(self, number)
            if number == 100:
                if how == "break":
                    break
                raise LookupError

    def task(self):
        if how == "outer body":
            for number in self.iterate([1, 10, 100]):
                add(self, number)
                for inner in self.iterate(range(3), name="inner", every=1):
                    if (number, inner) == (100, 1) and once("inner"):
                        raise Kill
        else:
            with suppress(LookupError):
                left_early(self)
            assert self.state == 111, "the task sees what it has assigned"
        for item in self.iterate(range(3), name="after", every=1):
            if item == 1 and once("after"):
                raise Kill
        return self.state

    assert b.run(b.task(task)) == ("SUCCESS", 111)


def test_a_state_of_an_inner_loop_that_is_left_is_that_of_the_outer_item(b):
    once = Once()

    def task(self):
        for outer in self.iterate(range(3), every=1):
            for inner in self.iterate(range(4), name="inner"):
                self.state = [*(self.state or []), (outer, inner)]
                if inner == outer:
                    break
            if outer and once(outer):
                raise Kill
        return self.state

    expected = [(outer, inner) for outer in range(3) for inner in range(outer + 1)]
    assert b.run(b.task(task)) == ("SUCCESS", expected)


def test_a_state_that_a_step_has_set_is_saved_with_it(b):
    once = Once()

    def task(self):
        def count(number):
            self.state = (self.state or 0) + number

        for number in self.iterate([1, 2, 3]):
            self.step("count", count, number)
            if once(number):
                b.interrupt()
                self.sleep(0)
        return self.state

    assert b.run(b.task(task)) == ("SUCCESS", 6)


def test_a_state_set_by_the_hook_is_saved(b):
    """The task's code has ended then, so there is no item in hand."""

    class Base(GracefulTask):
        abstract = True

        def on_interrupted(self, interrupt):
            seen.append(self.state)
            self.state = f"{self.state}, interrupted"

    seen, once = [], Once()

    def task(self):
        for number in self.iterate(range(3)):
            self.state = number
            if number == 2 and once(number):
                b.interrupt()
                self.sleep(0)
            if number == 2:
                return self.state if self.state != 2 else seen
        return None

    made = b.task(task, base=Base)
    b.new_worker()
    b.deliver(made, id="x")
    assert seen == [1], "as of the last item done"
    assert decode(b.saved(made, "x")["state"]) == "1, interrupted"


def test_a_state_with_a_cursor_of_your_own_is_saved_as_it_is(b):
    """When an item is done says whoever keeps the cursor."""

    def task(self):
        for number in self.iterate(range(3), cursor=None):
            self.state = number
            if number == 1:
                b.interrupt()
                self.sleep(0)

    made = b.task(task)
    b.deliver(made, id="x")
    assert decode(b.saved(made, "x")["state"]) == 1


def test_the_state_is_a_copy(b):
    def task(self):
        state = {"rows": [1]}
        self.checkpoint(state)
        state["rows"].append(2)
        self.state["rows"].append(3)
        return self.state

    assert b.deliver(b.task(task)) == ("SUCCESS", {"rows": [1]})


def test_state_that_cannot_be_saved(b):
    def task(self):
        self.checkpoint({"rows": [1, 2, 3, object()]})

    _, exc = b.deliver(b.task(task))
    assert str(exc).startswith("state['rows'][3] is a builtins.object")


def test_on_resumed(b):
    seen = []

    class Base(GracefulTask):
        abstract = True

        def on_resumed(self, state):
            seen.append((state, self.request.id))

    def task(self):
        if self.state is None:
            self.checkpoint("saved")
            raise Kill

    assert b.run(b.task(task, base=Base), id="t") == ("SUCCESS", None)
    assert seen == [("saved", "t")]


def test_on_interrupted_may_save(b):
    class Base(GracefulTask):
        abstract = True

        def on_interrupted(self, interrupt):
            self.checkpoint("at the last moment")

    def task(self):
        if self.state is None:
            b.interrupt()
            self.sleep(60)
        return self.state

    assert b.run(b.task(task, base=Base)) == ("SUCCESS", "at the last moment")


# -- limits --------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 2])
def test_too_many_interruptions(b, limit):
    runs = count()

    def task(self):
        next(runs)
        b.interrupt()
        self.sleep(60)

    made = b.task(task, max_interruptions=limit)
    state, info = b.run(made)
    assert state == "FAILURE"
    assert isinstance(info, TooManyInterruptions)
    assert (info.interruptions, info.limit) == (limit + 1, limit)
    assert next(runs) == limit + 1


def test_interruptions_at_the_hard_deadline_count(b):
    def task(self):
        return self.interruptions

    made = b.task(task, max_interruptions=1)
    for again, expected in enumerate([("SUCCESS", 1), "FAILURE"]):
        info = {"redelivered": bool(again)}
        request = Context(id="t", graceful_delivery=uuid.uuid4().hex, delivery_info=info)
        count_given_up(made, request, monotonic())
        outcome = b.deliver(made, id="t", redelivered=True)
        assert expected in (outcome, outcome[0])


def test_max_run_time(b):
    log = []

    def task(self):
        for item in self.iterate(range(3)):
            log.append(item)
        return self.interruptions

    made = b.task(task, max_run_time=1e-9)
    outcomes = [b.deliver(made, id="t", redelivered=n > 0)[1] for n in range(5)]
    # Three items and the end of the loop, one a run: it stops only where it got further.
    assert [getattr(outcome, "reason", outcome) for outcome in outcomes] == ["run_time"] * 4 + [0]
    assert log == [0, 1, 2]


def test_max_run_time_without_progress(b):
    def task(self):
        self.checkpoint()
        return "went on"

    assert b.deliver(b.task(task, max_run_time=1e-9)) == ("SUCCESS", "went on")


def test_interrupt_and_retry_keep_the_checkpoint(b):
    log = []

    def task(self):
        for item in self.iterate(range(4)):
            log.append(item)
            if item == 2 and not self.request.retries:
                raise self.retry(countdown=0)

    made = b.task(task)
    assert b.deliver(made, id="t")[0] == "RETRY"
    assert b.deliver(made, id="t", retries=1)[0] == "SUCCESS"
    assert log == [0, 1, 2, 2, 3]


# -- outside of a worker --------------------------------------------------------------


def test_called_directly_nothing_is_saved(b):
    def task(self):
        out = [self.step("a", lambda: 1), *self.iterate([2, 3])]
        self.checkpoint("x")
        return out, self.state, self.resumed, self.interruptions

    made = b.task(task)
    assert made() == ([1, 2, 3], "x", False, 0)
    assert made() == ([1, 2, 3], "x", False, 0)
    assert made.apply().get() == ([1, 2, 3], "x", False, 0)
    assert made.run() == ([1, 2, 3], None, False, 0)
    assert b.client.dbsize() == 0


def test_interrupted_is_raised_between_items(b):
    def task(self):
        try:
            for _ in self.iterate(range(3)):
                b.interrupt()
        except Interrupted as exc:
            return str(exc.interrupt.reason)

    assert b.deliver(b.task(task)) == ("SUCCESS", "shutdown")


def test_the_store_of_users_tests_does_what_redis_does(b):
    """Any deliveries, one after the other."""
    chance = random.Random(7)
    store, ours = find_store(b.app), MemoryStore(lambda *_: None)
    for number in range(40):
        token = str(number)
        for first in (True, False, False):
            fields = chance.sample(["state", "c:a", "c:b", "s:x", "s:a@1/y"], 3)
            changed = fields[: 0 if first else chance.randrange(3)]
            pairs = [item for name in changed for item in (name, str(chance.random()))]
            interrupted = 0 if first else chance.choice([0, 0, 1])
            counts = [1, interrupted, len(changed), 0, ""]
            args = [token, 0, 60_000, *counts, *pairs, *fields[len(changed) :]]
            there = store.run("checkpoint", ["graceful:checkpoint:t"], args)
            here = ours.run("checkpoint", ["graceful:checkpoint:t"], args)
            assert there[0] == here[0]
            assert (there[2] > 0) == (here[2] == 0), "one delivery at a time needs no clock"
            found, expected = (dict(zip(x[1][::2], x[1][1::2], strict=True)) for x in (here, there))
            assert found == {k: v for k, v in expected.items() if k not in ("fence", "began")}
