"""Prefork: the end of a pool that has nothing to do."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from billiard.pool import CLOSE, RUN, TERMINATE

from celery_graceful.pools import prefork
from celery_graceful.pools.prefork import PreforkAdapter


class Pool:
    """Whose children leave when the loop's timers have been fired twice, or never."""

    def __init__(self, fired: threading.Semaphore, *, state: int = RUN, jobs: int = 0) -> None:
        self._state, self._cache = state, dict.fromkeys(range(jobs))
        self._fired = fired
        self.steps: list[str] = []

    def close(self) -> None:
        self.steps.append("closed")

    def join(self) -> None:
        assert all(self._fired.acquire(timeout=30) for _ in range(2)), "timers are fired meanwhile"
        self.steps.append("joined")


def stop(monkeypatch: pytest.MonkeyPatch, pool: Pool, fired: threading.Semaphore) -> list[Any]:
    """What Celery's own stop finds."""
    monkeypatch.setattr(prefork, "TIMERS", 0.01)
    monkeypatch.setattr(prefork, "LAST", 60.0)
    fire = Mock(side_effect=[ValueError("one that fails"), *[None] * 10_000])

    def fire_timers() -> None:
        fired.release()
        fire()

    monkeypatch.setattr(prefork, "get_event_loop", lambda: SimpleNamespace(fire_timers=fire_timers))
    task_pool, found = SimpleNamespace(_pool=pool), []
    adapter = SimpleNamespace(worker=SimpleNamespace(pool=task_pool))
    PreforkAdapter._without_delay(adapter, lambda: found.append(task_pool._pool))()
    return found


@pytest.mark.parametrize("state", [RUN, CLOSE])
def test_one_that_has_nothing_to_do_is_waited_for_and_no_longer(
    monkeypatch: pytest.MonkeyPatch, state: int
) -> None:
    fired = threading.Semaphore(0)
    pool = Pool(fired, state=state)
    assert stop(monkeypatch, pool, fired) == [None]
    assert pool.steps == ["closed", "joined"]
    assert not [t for t in threading.enumerate() if t.name == "graceful-timers"]


@pytest.mark.parametrize(("state", "jobs"), [(RUN, 1), (TERMINATE, 0)])
def test_any_other_is_left_to_celery(
    monkeypatch: pytest.MonkeyPatch, state: int, jobs: int
) -> None:
    pool = Pool(threading.Semaphore(0), state=state, jobs=jobs)
    assert stop(monkeypatch, pool, threading.Semaphore(0)) == [pool]
    assert pool.steps == []


FORKS = """
import gc, os, signal, threading
from billiard.pool import Pool
from celery_graceful.pools import inherited_locks
from celery_graceful.pools.processes import graceful
from celery_graceful.system.garbage import freeze_once

embedded = threading.Thread(target=freeze_once)
embedded.start()
embedded.join()
assert not gc.get_freeze_count()
walks, walk = [], inherited_locks._cached_properties
inherited_locks._cached_properties = lambda: walks.append(1) or walk()
frozen = []
pool = graceful(Pool)(2, initargs=(None, ""))
frozen.append(gc.get_freeze_count())
pool.grow(1)
frozen.append(gc.get_freeze_count())
print(len(walks), frozen[0] > 10_000, frozen[1] == frozen[0], flush=True)
for process in pool._pool:
    os.kill(process.pid, signal.SIGKILL)
os._exit(0)
"""


def test_children_share_what_was_there_before_the_first() -> None:
    """Nothing writes into all of it between two forks: no collection, no search for locks."""
    run = [sys.executable, "-c", FORKS]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["1", "True", "True"]
