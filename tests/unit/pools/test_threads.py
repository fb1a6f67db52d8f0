"""What a pool of threads is handed: without a future where nobody can tell, else as ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.thread import _WorkItem
from typing import Any
from unittest.mock import Mock

import pytest
from celery.concurrency.thread import TaskPool

from celery_graceful.pools.threads import _is_celerys, _is_pythons, _Item, _put

#: Seconds; many times what anything here takes.
TIMEOUT = 60


class Body:
    """In the place of a request that a pool was handed."""

    def __init__(self, body: Any = lambda *args: args) -> None:
        self.graceful_body = body
        self.told: list[Any] = []
        self.has_ended = threading.Event()

    def accepted(self, pid: int, at: float) -> None:
        self.told.append("accepted")

    def ended(self, result: Any) -> None:
        self.told.append(result)
        self.has_ended.set()


@pytest.mark.parametrize("places", [1, 3])
def test_threads_run_what_they_find_in_their_queue(places: int) -> None:
    """Of the standard library: who runs it, and that it starts threads up to its limit."""
    barrier = threading.Barrier(places)
    bodies = [Body(lambda *_: barrier.wait(TIMEOUT)) for _ in range(3 * places)]
    with ThreadPoolExecutor(places) as executor:
        for body in bodies:
            _put(executor, _Item(body, (1, 2)))  # type: ignore[arg-type]
        assert all(body.has_ended.wait(TIMEOUT) for body in bodies)
        assert len(executor._threads) == places
        assert executor.submit(sum, [1, 2]).result(TIMEOUT) == 3  # others use it, too


def test_what_is_raised_ends_no_thread() -> None:
    def leave(*_: Any) -> None:
        raise SystemExit

    first, then = Body(leave), Body()
    first.ended = Mock(side_effect=ValueError)  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as executor:
        for body in (first, then):
            _put(executor, _Item(body, (1,)))  # type: ignore[arg-type]
        assert then.has_ended.wait(TIMEOUT)
    assert then.told == ["accepted", (1,)]
    first.ended.assert_called_once()


def test_what_waits_when_the_pool_stops_is_not_run() -> None:
    runs, go = threading.Event(), threading.Event()
    first, then = Body(lambda *_: runs.set() or go.wait(TIMEOUT)), Body()
    executor = ThreadPoolExecutor(1)
    for body in (first, then):
        _put(executor, _Item(body, ()))  # type: ignore[arg-type]
    assert runs.wait(TIMEOUT)
    executor.shutdown(wait=False, cancel_futures=True)
    go.set()
    executor.shutdown()
    assert (first.told[0], then.told) == ("accepted", [])
    with pytest.raises(RuntimeError):
        _put(executor, _Item(then, ()))  # type: ignore[arg-type]


def test_only_celerys_own_pool() -> None:
    class Own(TaskPool):  # type: ignore[misc]
        def on_apply(self, *args: Any, **kwargs: Any) -> None: ...

    pool = TaskPool(1)
    assert _is_celerys(pool)
    assert not _is_celerys(Own(1))
    pool.apply_async = pool.apply_async  # wrapped by somebody
    assert not _is_celerys(pool)


def test_only_where_nobody_watches_what_is_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(ThreadPoolExecutor): ...

    assert _is_pythons(ThreadPoolExecutor)
    assert not _is_pythons(Own)
    with monkeypatch.context() as newer:
        newer.setattr(_WorkItem, "run", lambda self, ctx: None)
        assert not _is_pythons(ThreadPoolExecutor), "as in Python 3.14"
    plain = ThreadPoolExecutor.submit
    monkeypatch.setattr(ThreadPoolExecutor, "submit", lambda *a, **k: plain(*a, **k))
    assert not _is_pythons(ThreadPoolExecutor)
