"""Tasks with a bug each, that only shows when they are interrupted or killed; others without.

All write to the world outside, which is ``sent``, a list, and ``books``, a dict.
"""

from __future__ import annotations

import functools
import itertools
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any, NamedTuple

from celery import Celery

from celery_graceful import Graceful, GracefulTask, Interrupted, shield

app = Celery("planted", broker="redis://127.0.0.1:1/0", backend="redis://127.0.0.1:1/0")
Graceful(app)

sent: list[Any] = []
books: dict[Any, Any] = {}
ROWS = ["ada", "bob", "eve", "joe", "sue"]


class Planted(NamedTuple):
    """A task, its arguments, what the world is and what the failure has to say."""

    task: Any
    args: tuple[Any, ...]
    says: tuple[str, ...]


BUGS: list[Planted] = []
RIGHT: list[Planted] = []


def _plant(where: list[Planted], *args: Any, says: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    def plant(fn: Any) -> Any:
        task = app.task(base=GracefulTask, bind=True, name=f"planted.{fn.__name__}")(fn)
        where.append(Planted(task, args, says))
        return task

    return plant


def bug(*args: Any, says: tuple[str, ...]) -> Callable[[Any], Any]:
    return _plant(BUGS, *args, says=says)


def right(*args: Any) -> Callable[[Any], Any]:
    return _plant(RIGHT, *args)


def send(what: Any) -> None:
    """Nobody can take it back, and twice is once too often."""
    sent.append(what)


def store(key: Any, value: Any = True) -> None:
    """Twice is as good as once."""
    books[key] = value


# -- with a bug ----------------------------------------------------------------------


@bug(says=("kill -9 at checkpoint 1", "2 times instead of 1: 'ada'", "schedules=[[kill_at("))
def effect_before_its_checkpoint(self: Any) -> None:
    for number in range(self.state or 0, len(ROWS)):
        send(ROWS[number])
        self.checkpoint(number + 1)


_totals = {"rows": 0}


@bug(ROWS, says=("interrupt_at(row=1)", "_totals", "found    4"))
def state_kept_in_a_global(self: Any, rows: list[str]) -> None:
    for _ in self.iterate(rows):
        _totals["rows"] += 1
    store("total", _totals["rows"])


#: Of a database that is asked without ORDER BY.
_mood = itertools.count()


@bug(says=("interrupt_at(row=", "the source of 'loop' has no fixed order"))
def unordered_source(self: Any) -> None:
    first = next(_mood) % len(ROWS)
    for name in self.iterate(ROWS[first:] + ROWS[:first]):
        store(name)


@bug("card-7", says=("kill_at(step='charge')", "what ran twice: step 'charge'", "'card-7'"))
def step_that_is_not_idempotent(self: Any, card: str) -> None:
    self.step("charge", send, card)
    self.step("book", store, card)


@bug(says=("interrupt at checkpoint 1", "missing: 'ada'"))
def cursor_saved_too_early(self: Any) -> None:
    for number in range(self.state or 0, len(ROWS)):
        self.checkpoint(number + 1)
        store(ROWS[number])


@bug(ROWS, says=("kill_at(row=1, saved=True)", "missing: 'ada'"))
def effect_in_a_finally(self: Any, rows: list[str]) -> None:
    buffer: list[str] = []
    try:
        for name in self.iterate(rows):
            buffer.append(name)
    finally:
        for name in buffer:
            store(name)


@bug(ROWS, says=("interrupt_at(row=1)", "too much", "missing"))
def time_used_as_state(self: Any, rows: list[str]) -> None:
    part = time.monotonic_ns()
    for name in self.iterate(rows):
        books.setdefault(part, []).append(name)


@bug(ROWS, says=("interrupt_at(row=1)", "a default of mutable_default"))
def mutable_default(self: Any, rows: list[str], seen: list[str] = []) -> None:  # noqa: B006
    for name in self.iterate(rows):
        seen.append(name)
    store("seen", len(seen))
    seen.clear()


@bug(says=("interrupt_at(row=1)", "missing: 'bob'"))
def rows_removed_while_it_runs(self: Any) -> None:
    for name in self.iterate([name for name in ROWS if name not in books]):
        store(name)


@bug(ROWS, says=("interrupt_at(row=1)", "missing: 'bob'"))
def swallowed_interrupt(self: Any, rows: list[str]) -> None:
    try:
        for name in self.iterate(rows):
            store(name)
    except BaseException as exc:
        books.setdefault("errors", 0)
        del exc
    books.pop("errors", None)


@bug(says=("interrupt_at_checkpoint(1)", "it was told to stop, and went on with"))
def interrupt_swallowed_each_time(self: Any) -> None:
    for name in ROWS:
        try:
            self.checkpoint()
            store(name)
        except BaseException:
            store(name)


@bug(ROWS, says=("interrupt_at(row=1)", "planted.state_on_the_task"))
def state_on_the_task(self: Any, rows: list[str]) -> None:
    self.count = 0 if self.resumed is False else getattr(self, "count", 0)
    for _ in self.iterate(rows):
        self.count += 1
    store("count", self.count)


class Basket:
    def __init__(self) -> None:
        self.names: list[str] = []


basket = Basket()


@bug(ROWS, says=("interrupt_at(row=1)", "basket"))
def shared_object(self: Any, rows: list[str]) -> None:
    for name in self.iterate(rows):
        basket.names.append(name)
    store("basket", tuple(basket.names))
    basket.names.clear()


class Counter:
    rows = 0


@bug(ROWS, says=("interrupt_at(row=1)", "Counter.rows"))
def state_on_a_class(self: Any, rows: list[str]) -> None:
    if not self.resumed:
        Counter.rows = 0
    for _ in self.iterate(rows):
        Counter.rows += 1
    store("count", Counter.rows)


@bug(ROWS, says=("kill -9 after its end", "2 times instead of 1: 'summary'", "kill_at(end=True)"))
def effect_behind_the_loop(self: Any, rows: list[str]) -> None:
    for name in self.iterate(rows):
        store(name)
    send("summary")


@functools.lru_cache
def _numbers() -> Iterator[int]:
    return itertools.count(1)


@bug(ROWS, says=("interrupt_at(row=1)", "at 'bob'"))
def state_in_a_cache(self: Any, rows: list[str]) -> None:
    if not self.resumed:
        _numbers.cache_clear()
    for name in self.iterate(rows):
        store(name, next(_numbers()))


class Slotted:
    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows = 0


#: Places where memory is, each a module's or a process' own: an attribute and what has it.
_places: dict[str, Any] = {
    "object_in_a_dict": Basket(),
    "slots": Slotted(),
    "namespace": SimpleNamespace(),
    "thread_local": threading.local(),
}


def _remember(count: int) -> None:
    _remember.calls = count  # type: ignore[attr-defined]


_remember(0)
_counted: ContextVar[int] = ContextVar("counted", default=0)
_rebound: list[str] = []
_event = threading.Event()
_waiting: queue.Queue[str] = queue.Queue()


def _counts(self: Any, rows: list[str], holder: Any) -> None:
    if not self.resumed:
        holder.rows = 0
    for _ in self.iterate(rows):
        holder.rows += 1
    store("count", holder.rows)


@bug(ROWS, says=("interrupt_at(row=1)", "something in _places"))
def state_of_an_object_in_a_dict(self: Any, rows: list[str]) -> None:
    _counts(self, rows, _places["object_in_a_dict"])


@bug(ROWS, says=("interrupt_at(row=1)", "something in _places.rows"))
def state_in_slots(self: Any, rows: list[str]) -> None:
    _counts(self, rows, _places["slots"])


@bug(ROWS, says=("interrupt_at(row=1)", "something in _places"))
def state_in_a_namespace(self: Any, rows: list[str]) -> None:
    _counts(self, rows, _places["namespace"])


@bug(ROWS, says=("interrupt_at(row=1)", "something in _places"))
def state_in_a_thread_local(self: Any, rows: list[str]) -> None:
    _counts(self, rows, _places["thread_local"])


@bug(ROWS, says=("interrupt_at(row=1)", "_remember"))
def state_on_a_function(self: Any, rows: list[str]) -> None:
    if not self.resumed:
        _remember(0)
    for _ in self.iterate(rows):
        _remember(_remember.calls + 1)  # type: ignore[attr-defined]
    store("count", _remember.calls)  # type: ignore[attr-defined]


@bug(ROWS, says=("interrupt_at(row=1)", "_counted"))
def state_in_a_context_variable(self: Any, rows: list[str]) -> None:
    if not self.resumed:
        _counted.set(0)
    for _ in self.iterate(rows):
        _counted.set(_counted.get() + 1)
    store("count", _counted.get())


@bug(ROWS, says=("interrupt_at(row=1)", "_rebound"))
def state_in_a_list_made_anew(self: Any, rows: list[str]) -> None:
    global _rebound
    if not self.resumed:
        _rebound = []
    for name in self.iterate(rows):
        _rebound = [*_rebound, name]
    store("names", tuple(_rebound))


@bug(ROWS, says=("interrupt_at(row=1)", "_event"))
def state_in_an_event(self: Any, rows: list[str]) -> None:
    if not self.resumed:
        _event.clear()
    for name in self.iterate(rows):
        if name == "ada":
            _event.set()
    store("has ada", _event.is_set())


@bug(ROWS, says=("interrupt_at(row=1)", "_waiting"))
def state_in_a_queue(self: Any, rows: list[str]) -> None:
    for name in self.iterate(rows):
        _waiting.put(name)
    while not _waiting.empty():
        store(_waiting.get())


@bug(ROWS, says=("interrupt_at(row=1)", "missing: 'ada'"))
def buffer_of_several_rows(self: Any, rows: list[str]) -> None:
    buffer: list[str] = []
    for name in self.iterate(rows):
        buffer.append(name)
        if len(buffer) == 2:
            books.update(dict.fromkeys(buffer))
            buffer.clear()
    books.update(dict.fromkeys(buffer))


@bug(ROWS, says=("interrupt_at(row=1)", "missing"))
def position_counted_by_hand(self: Any, rows: list[str]) -> None:
    for number, name in enumerate(self.iterate(rows)):
        store(number, name)


@bug(ROWS, says=("interrupt_at(row=1)", "missing: 'bob'"))
def done_when_it_was_begun(self: Any, rows: list[str]) -> None:
    if self.resumed:
        return
    for name in self.iterate(rows):
        store(name)


# -- without ---------------------------------------------------------------------------


@right(ROWS)
def loop(self: Any, rows: list[str]) -> None:
    for name in self.iterate(rows):
        store(name)


@right(ROWS)
def total_in_the_state(self: Any, rows: list[str]) -> None:
    for name in self.iterate(rows):
        self.state = (self.state or 0) + len(name)
    store("total", self.state)


@right("card-7")
def steps(self: Any, card: str) -> None:
    charge = self.step("charge", store, ("charge", card), 12)
    self.step("receipt", store, ("receipt", card), charge)


@right(ROWS)
def steps_in_a_loop(self: Any, rows: list[str]) -> None:
    for name in self.iterate(rows):
        number = self.step("number", len, name)
        self.step("store", store, name, number)


@right(ROWS)
def loops_in_a_loop(self: Any, rows: list[str]) -> None:
    for name in self.iterate(rows):
        for letter in self.iterate(name, name="letters"):
            store((name, letter))


@right(ROWS)
def cursor_beside_the_effects(self: Any, rows: list[str]) -> None:
    """Exactly once: what was done and how far it is are written together."""
    found = self.iterate(rows, cursor=books.get("cursor"))
    for name in found:
        books.update(cursor=found.cursor, names=(*books.get("names", ()), name))


@right()
def checkpoints(self: Any) -> None:
    for number in range(self.state or 0, len(ROWS)):
        store(ROWS[number])
        self.checkpoint(number + 1)


@right(ROWS)
def finally_that_cleans_up(self: Any, rows: list[str]) -> None:
    handle = [0]
    try:
        for name in self.iterate(rows, every=2):
            store(name)
    finally:
        handle.clear()


@right(ROWS)
def interrupt_that_is_passed_on(self: Any, rows: list[str]) -> None:
    try:
        for name in self.iterate(rows):
            with shield():
                store(name)
            self.sleep(0)
    except Interrupted:
        books.pop("lock", None)
        raise


_lengths = {name: len(name) for name in ROWS}


@contextmanager
def _transaction() -> Iterator[dict[Any, Any]]:
    pending: dict[Any, Any] = {}
    yield pending
    books.update(pending)


@functools.lru_cache
def _length(name: str) -> int:
    return _lengths[name]


@right(ROWS)
def memory_that_may_be_lost(self: Any, rows: list[str]) -> None:
    """A cache, globals that are only read, transactions."""
    with _transaction() as written:
        written["began"] = True
    for name in self.iterate(rows):
        with _transaction() as written:
            written[name] = _length(name)
        _lengths.setdefault(name, len(name))


@right([3, 1, 2])
def arguments_that_are_changed(self: Any, numbers: list[int]) -> None:
    numbers.sort()
    while numbers:
        self.checkpoint()
        store(numbers.pop())


_lock = threading.Lock()


@right(ROWS)
def lock_released_by_hand(self: Any, rows: list[str]) -> None:
    """Who is killed with it does not come to the ``finally``; in a new process it is free."""
    for name in self.iterate(rows):
        assert _lock.acquire(timeout=10)
        try:
            self.step("store", store, name)
        finally:
            _lock.release()


_slots = threading.BoundedSemaphore(1)


@right(ROWS)
def semaphore_around_it_all(self: Any, rows: list[str]) -> None:
    assert _slots.acquire(timeout=10)
    try:
        for name in self.iterate(rows):
            store(name)
    finally:
        _slots.release()


@right(ROWS)
def sends_what_the_world_does_not_have(self: Any, rows: list[str]) -> None:
    for name in self.iterate(rows):
        if name not in books:
            send(name)
            store(name)


@right(ROWS)
def mishaps_that_are_noted(self: Any, rows: list[str]) -> None:
    for name in self.iterate(rows):
        try:
            store(name, 1 / (len(name) - 3 + (name != "eve")))
        except Exception as exc:
            store(name, repr(exc))


@right(ROWS)
def ends_in_the_middle_of_its_source(self: Any, rows: list[str]) -> None:
    self.sleep(random.random() / 1000)
    for name in self.iterate(iter(rows)):
        store(name)
        if name == "joe":
            break
