"""What is set aside is there once: also where an answer was lost, and it is asked again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from kombu.message import Message

from celery_graceful.poison.quarantine import Kept, entries, keep
from celery_graceful.store.app_stores import find_store
from celery_graceful.store.store import Store, StoreAway
from celery_graceful.unusable.destinations import Case
from celery_graceful.unusable.set_aside import SetAside
from celery_graceful.unusable.waiting import Kind, Stray, WaitingRoom
from tests.conftest import RedisDB
from tests.support.workers import TIMEOUT, wait_until

KIND = Kind("celery", "new")


def message(**headers: Any) -> Any:
    headers = {"id": "1", "task": "new", **headers}
    rest = {"content_type": "application/json", "content_encoding": "utf-8"}
    return Message(body="[[], {}, {}]", headers=headers, properties={}, delivery_info={}, **rest)


def kept_of(**headers: Any) -> Kept:
    return Kept.of_message(message(**headers), why="", deaths=0, worker="")


def stray(delivery: str, *, again: bool = False, **headers: Any) -> Stray:
    kept = kept_of(**headers)
    text, print_ = kept.to_json(), kept.fingerprint
    return Stray(kept.id, KIND, text=text, fingerprint=print_, again=again, delivery=delivery)


@pytest.fixture
def store(redis_db: RedisDB) -> Store:
    app = Celery("waits", broker=redis_db.url, backend=redis_db.backend_url, set_as_current=False)
    found = find_store(app)
    assert found is not None
    return found


@pytest.fixture
def room(store: Store) -> WaitingRoom:
    return WaitingRoom(store, "rabbit")


def test_what_is_asked_again_is_there_once(room: WaitingRoom) -> None:
    first = stray("first")
    assert room.wait("", 60, [first]) == room.wait("", 60, [first]) == ["waits"]
    assert room.kinds() == {KIND: 1}
    ((loan, _),) = room.lend(KIND, 9)
    room.drop([loan])
    assert room.wait("", 60, [first]) == ["waits"], "the answer was that late"
    assert room.kinds() == {}


def test_older_versions_can_read_how_long_one_waits(
    room: WaitingRoom, store: Store, redis_db: RedisDB
) -> None:
    """They take it for a number, where a deploy is taken back; some wrote the delivery there."""
    client = redis_db.client
    key = "graceful:waited:1"
    room.wait("", 60, [stray("first")])
    assert float(client.get(key)) > 0
    assert client.pttl("graceful:aside:1") == pytest.approx(client.pttl(key), abs=1000)
    client.delete("graceful:aside:1")
    client.set(key, f"{client.get(key)} first")
    assert room.wait("", 60, [stray("first")]) == ["waits"]
    assert room.kinds() == {KIND: 1}
    client.set(key, "1.5 earlier")
    assert room.wait("", 60, [stray("second")]) == ["over"]


def test_two_of_one_id_are_two(room: WaitingRoom) -> None:
    room.wait("", 60, [stray("first"), stray("second")])
    assert room.kinds() == {KIND: 2}


def test_what_another_worker_had_set_aside_is_there_once(room: WaitingRoom) -> None:
    """It died before it could acknowledge it; the broker counts on what it delivers again."""
    room.wait("", 60, [stray("first")])
    room.wait("", 60, [stray("second", again=True, **{"x-delivery-count": 1})])
    assert room.kinds() == {KIND: 1}
    room.wait("", 60, [stray("third", again=True, retries=1)])
    assert room.kinds() == {KIND: 2}, "a later try is another message"


def test_what_is_dropped_late_was_lent_before(room: WaitingRoom) -> None:
    """It was sent, was delivered, had no luck there either, and waits once more."""
    room.wait("", 60, [stray("first")])
    ((loan, _),) = room.lend(KIND, 9)
    room.wait("", 60, [stray("second", again=True)])
    room.drop([loan])
    assert room.kinds() == {KIND: 1}
    ((later, _),) = room.lend(KIND, 9)
    assert later != loan
    room.drop([later])
    assert room.kinds() == {}


def test_what_could_not_be_dropped_is_dropped_before_more_is_lent(
    room: WaitingRoom, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.wait("", 60, [stray("first")])
    ((loan, _),) = room.lend(KIND, 9)

    def away(*_: Any, **__: Any) -> Any:
        raise StoreAway("away")

    with monkeypatch.context() as context:
        context.setattr(store, "run", away)
        for attempt in (lambda: room.drop([loan]), lambda: room.lend(KIND, 9)):
            with pytest.raises(StoreAway):
                attempt()
    assert room.lend(KIND, 9) == []
    assert room.kinds() == {}


def test_quarantine_has_what_is_kept_again_once(store: Store) -> None:
    first = kept_of()
    assert keep(store, first) == keep(store, first) == "1"
    later = kept_of(**{"x-delivery-count": 2})
    assert keep(store, later, again=True) == "1"
    others = {keep(store, kept_of()), keep(store, kept_of(retries=1), again=True)}
    assert len(others | {"1"}) == 3
    assert {one.id for one in entries(store)} == others | {"1"}


class Slow:
    """A destination that does what it is asked, in a while."""

    end, at_once, tells = "", 2, False

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.begun, self.goes_on = threading.Event(), threading.Event()
        self.fails = False

    def wait(self, cases: Sequence[Case]) -> list[Case]:
        self.asked.append([case.delivery for case in cases])
        self.begun.set()
        assert self.goes_on.wait(TIMEOUT)
        if self.fails:
            raise StoreAway("late")
        return []

    def kinds(self, age: float) -> dict[Kind, int]:
        return {}

    def leave(self, until: float) -> None:
        pass


@pytest.fixture
def slow() -> Any:
    place = Slow()
    board = SimpleNamespace(is_quiet=True)
    ledger = SimpleNamespace(claims=None, held=[])
    aside = SetAside(place, ledger, board, 60, None, lambda: None)  # type: ignore[arg-type]
    yield place, aside
    place.goes_on.set()
    aside.end(TIMEOUT)


def test_a_stop_waits_for_what_was_begun_and_begins_nothing(slow: Any) -> None:
    place, aside = slow
    cases = [Case(message(), None, "celery", "new", str(n)) for n in range(5)]
    for case in cases:
        aside.put(case)
    assert place.begun.wait(TIMEOUT)
    assert not aside.finish()
    place.goes_on.set()
    wait_until(lambda: aside.done, "what was begun is done")
    assert not aside.finish(), "it has to be acknowledged"
    done = list(aside.done)
    aside.done.clear()
    assert aside.finish()
    assert [case.delivery for case in done] == place.asked[0]
    assert len(place.asked) == 1


def test_what_may_have_been_done_is_asked_for_again_alone(slow: Any) -> None:
    """More that came meanwhile would be lost from sight if the answer came for all of them."""
    place, aside = slow
    place.fails = True
    aside.put(Case(message(), None, "celery", "new", "1"))
    assert place.begun.wait(TIMEOUT)
    aside.put(Case(message(), None, "celery", "new", "2"))
    place.goes_on.set()
    wait_until(lambda: len(place.asked) > 1, "asked again")
    assert place.asked[0] == place.asked[1]
    assert not aside.finish()
    place.fails = False
    wait_until(lambda: aside.done, "it is done")
    assert [case.delivery for case in aside.done] == place.asked[0]


def test_what_was_begun_over_a_lost_connection_is_let_go(slow: Any) -> None:
    """It comes again; and what comes over the new one is not taken for it."""
    place, aside = slow
    place.fails = True
    place.goes_on.set()
    aside.put(Case(message(), None, "celery", "new", "1"))
    wait_until(lambda: len(place.asked) > 1, "asked again")
    aside.detach()
    case = Case(message(), None, "celery", "new", "2")
    aside.put(case)
    place.fails = False
    wait_until(lambda: aside.done, "the new one is done")
    assert [one.delivery for one in aside.done] == [case.delivery]
