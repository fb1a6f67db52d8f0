"""Locks of celery-once and celery-singleton: from the sending of a task to its end."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import redis

from celery_graceful.testing import Workers
from tests.support.installed import require_modules
from tests.support.workers import TIMEOUT, wait_until

#: Of a task that is cut off before it comes to its end, however long a machine stands still.
ROWS = 400


def is_refused_by_once(task: Any, sent: Any) -> bool:
    from celery_once import AlreadyQueued

    with pytest.raises(AlreadyQueued):
        task.delay(ROWS)
    return True


def is_the_same(task: Any, sent: Any) -> bool:
    return bool(task.delay(ROWS).id == sent.id)


@pytest.mark.parametrize(
    ("name", "keys", "refused"),
    [("once", "qo_*", is_refused_by_once), ("single", "SINGLETONLOCK*", is_the_same)],
)
def test_a_lock_is_held_until_the_task_has_ended(
    name: str,
    keys: str,
    refused: Callable[[Any, Any], bool],
    graceful_worker: Workers,
    graceful_redis: str,
) -> None:
    """Over an interruption, and over ``kill -9``: the run that goes on frees it."""
    require_modules("celery_once", "celery_singleton")
    locked = importlib.import_module("tests.apps.locked")
    locked.keep_locks(graceful_redis)
    task = getattr(locked, name)
    with redis.Redis.from_url(graceful_redis) as client:
        first = graceful_worker(locked.app)
        sent = task.delay(ROWS)
        first.wait_for("row 2")
        assert first.stop().interrupted == 1
        assert refused(task, sent)

        second = graceful_worker(locked.app)
        second.wait_for(r"row \d", count=3)  # from 3 to 5 at least
        second.kill()
        assert refused(task, sent)

        last = graceful_worker(locked.app, env={"PAUSE": "0"})
        assert sent.get(timeout=TIMEOUT) is None
        wait_until(lambda: not client.keys(keys), "the lock is free")
        last.stop()
        assert not any(line.endswith("row 3") for line in last.lines)
        assert any(line.endswith(f"row {ROWS - 1}") for line in last.lines)
    graceful_worker.assert_nothing_left()
