"""The journal holds up nobody, and fails nobody's task."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from celery_graceful.history import journal as module
from celery_graceful.history.entry import Entry, What
from celery_graceful.history.journal import AT_ONCE, MOST, Journal, current, record
from celery_graceful.settings import Settings
from celery_graceful.store.store import StoreAway
from celery_graceful.system.process import Owner

SETTINGS = Settings()


class Redis:
    """Takes what it gets, where it is there; and only when it may."""

    def __init__(self) -> None:
        self.away = False
        self.may = threading.Event()
        self.may.set()
        self.asked = threading.Event()
        self.steps: list[int] = []

    def run(self, script: str, keys: Any, args: Any, **options: Any) -> None:
        self.asked.set()
        assert self.may.wait(60)
        if self.away:
            raise StoreAway("Redis is away")
        self.steps.append(len(args[3::2]))


@pytest.fixture
def redis() -> Any:
    return Redis()


@pytest.fixture
def journal() -> Iterator[Journal]:
    journal, owner = Journal(), Owner()
    owner.fill(current, journal)
    yield journal
    journal.end(60)
    owner.end()


def entries(count: int) -> list[Entry]:
    return [Entry(What.RELEASED, str(number)) for number in range(count)]


def test_nothing_is_begun_before_there_is_something_to_write(redis: Any, journal: Journal) -> None:
    record(redis, SETTINGS)
    record(redis, Settings(history=False), *entries(1))
    record(None, SETTINGS, *entries(1))
    assert journal._thread is None
    record(redis, SETTINGS, *entries(1))
    assert journal._thread is not None


def test_entries_are_gathered(redis: Any, journal: Journal) -> None:
    redis.may.clear()
    record(redis, SETTINGS, *entries(1))
    assert redis.asked.wait(60)
    for entry in entries(2 * AT_ONCE):
        record(redis, SETTINGS, entry)
    redis.may.set()
    journal.end(60)
    assert redis.steps == [1, AT_ONCE, AT_ONCE]


def test_what_may_be_the_last_is_there_when_it_was_said(redis: Any, journal: Journal) -> None:
    """The next run of a task that kills its process must not get there first."""
    record(redis, SETTINGS, *entries(2), at_once=True)
    assert redis.steps == [2]
    assert journal._thread is None
    redis.away = True
    record(redis, SETTINGS, *entries(2), at_once=True)


def test_who_writes_waits_for_nothing(redis: Any, journal: Journal) -> None:
    """Nor does an end, for longer than it may; what is too much is lost."""
    redis.may.clear()
    for _ in range(2):
        record(redis, SETTINGS, *entries(MOST))
    began = time.monotonic()
    journal.end(0.05)
    assert time.monotonic() - began < 30
    assert not redis.steps
    redis.may.set()


def test_an_outage_is_said_once(
    redis: Any, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "log", lambda _, __, text, *args: said.append(text % args))
    redis.may.clear()
    redis.away = True
    record(redis, SETTINGS, *entries(AT_ONCE))
    for _ in range(2):
        record(redis, SETTINGS, *entries(AT_ONCE))
    redis.may.set()
    journal.end(60)
    assert said == ["The history is not written, entries are lost until it is again: Redis is away"]
    redis.away = False
    later = Journal()
    later._lost = 3
    later.add(redis, SETTINGS, entries(1))
    later.end(60)
    assert said[1:] == ["The history is written again: 3 entries are lost"]


def test_elsewhere_it_is_written_at_once_and_raises_nothing(redis: Any) -> None:
    assert current.value is None
    record(redis, SETTINGS, *entries(3))
    assert redis.steps == [3]
    redis.away = True
    record(redis, SETTINGS, *entries(3))


def test_what_a_later_version_has_written_is_left_out() -> None:
    entry = Entry(What.INTERRUPTED, "1", "shop.bill", "w", "shutdown" * 100, "at 3 of rows")
    read = Entry.from_json(entry.to_json())
    assert read is not None
    assert (read.id, read.where, len(read.reason), read.count) == ("1", "at 3 of rows", 300, 1)
    assert Entry.from_json(entry.to_json().replace("interrupted", "vanished")) is None
    assert Entry.from_json(entry.to_json().replace("where", "whither")) is not None
