"""Marks of tasks that have something in the store."""

from __future__ import annotations

import mmap
import os
import threading
import zlib
from uuid import uuid4

import pytest

from celery_graceful.timeline.marks import _EACH, _GROUPS, Marks


@pytest.fixture
def marks() -> Marks:
    return Marks(mmap.mmap(-1, 100 + Marks.SIZE), 100)


def together(count: int) -> list[str]:
    """Ids of tasks that share their places."""
    found: list[str] = []
    while len(found) < count:
        task_id = str(uuid4())
        if zlib.crc32(task_id.encode()) % _GROUPS == 7:
            found.append(task_id)
    return found


def test_each_is_taken_once(marks: Marks) -> None:
    marks.set("a")
    marks.set("a")
    assert not marks.take("b")
    assert marks.take("a")
    assert not marks.take("a")


def test_the_ends_of_others_take_none_away(marks: Marks) -> None:
    """However many of them there are while it runs."""
    long = [str(uuid4()) for _ in range(100)]
    for one in long:
        marks.set(one)
    for _ in range(20_000):
        short = str(uuid4())
        marks.set(short)
        assert marks.take(short)
    assert all(map(marks.take, long))
    assert not any(map(marks.take, long))


def test_no_room(marks: Marks) -> None:
    """Then all of those places may have something: a look too many, none too few."""
    some = together(_EACH + 2)
    for one in some:
        marks.set(one)
    assert all(map(marks.take, some)), "also when the others are gone"
    assert not marks.take("elsewhere")


def test_threads(marks: Marks) -> None:
    many = [together(_EACH // 4) for _ in range(4)]
    start = threading.Barrier(4)
    lacking: list[str] = []

    def save(ids: list[str]) -> None:
        start.wait(10)
        for _ in range(2000):
            for one in ids:
                marks.set(one)
            lacking.extend(one for one in ids if not marks.take(one))

    threads = [threading.Thread(target=save, args=[ids]) for ids in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not lacking


def test_processes(marks: Marks) -> None:
    some = together(3)
    for one in some:
        pid = os.fork()
        if pid == 0:
            try:
                marks.set(one)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
    assert all(map(marks.take, some))
