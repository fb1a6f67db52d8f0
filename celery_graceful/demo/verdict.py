"""What is true at the end, asked of the result backend, the broker and the files."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from redis import Redis

__all__ = ["claimed", "export_is_whole", "lost", "waiting"]


def lost(redis_url: str, task_ids: Iterable[str]) -> list[str]:
    """The tasks that have no successful result."""
    from celery import Celery

    backend = Celery(broker=redis_url, backend=redis_url).backend
    return [task_id for task_id in task_ids if backend.get_state(task_id) != "SUCCESS"]


def waiting(redis_url: str) -> int:
    """How many messages wait in the queue."""
    with Redis.from_url(redis_url) as client:
        return int(client.llen("celery"))


def claimed(redis_url: str, patience: float = 0.0) -> int:
    """How many messages are claimed by a worker and not acknowledged.

    Args:
        redis_url: The broker.
        patience: Seconds in which the last acknowledgements may come in.
    """
    end = time.monotonic() + patience
    with Redis.from_url(redis_url) as client:
        while True:
            holders = ["unacked", *client.scan_iter("graceful:claims:*")]
            count = sum(int(client.hlen(key)) for key in holders)
            if not count or time.monotonic() > end:
                return count
            time.sleep(0.05)


def export_is_whole(path: Path, rows: int) -> bool:
    """Whether an export holds each row once."""
    return path.exists() and path.read_text().split() == [str(row) for row in range(1, rows + 1)]
