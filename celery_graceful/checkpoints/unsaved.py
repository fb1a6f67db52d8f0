"""Why nothing of a task is saved, for the log: once in each process."""

from __future__ import annotations

from celery.utils.log import get_logger

__all__ = ["say_no_run", "say_no_store"]

logger = get_logger(__name__)

_said: set[str] = set()


def say_no_store() -> None:
    """There is no store."""
    _say(
        "",
        "There is no store for checkpoints: neither graceful_store is set, nor are the broker or "
        "the result backend Redis. Tasks that are interrupted start over",
    )


def say_no_run(task_name: str) -> None:
    """A worker is asked by who is part of no run of it: a thread of its own, a call of ``run``."""
    _say(
        task_name,
        f"{task_name}: a thread that it has started, or a call of its run(), has asked for a "
        "checkpoint (iterate, step, state, resumed, checkpoint). It is no run of a worker: nothing "
        "is saved there. Use them in the task's own thread",
    )


def _say(what: str, text: str) -> None:
    if what not in _said:
        _said.add(what)
        logger.warning("%s", text)
