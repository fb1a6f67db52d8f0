"""What is known of the runs of tasks that a broker without claims delivers again."""

from __future__ import annotations

from typing import NamedTuple

from celery_graceful.claims.lease_validity import EPOCH
from celery_graceful.poison.quarantine import QUARANTINE, release_key
from celery_graceful.settings import Settings
from celery_graceful.store.store import Store

__all__ = ["Asked", "Finding", "look"]


class Asked(NamedTuple):
    """A task, as it is looked into.

    Attributes:
        id: Its own.
        death: One that is certain; empty for none.
        message: That was delivered again, in short; empty for none.
        alone: It must not run while a worker that lives runs it.
    """

    id: str
    death: str = ""
    message: str = ""
    alone: bool = False


class Finding(NamedTuple):
    """About a task that was delivered again, or whose child has died."""

    verdict: str
    deaths: int
    #: Runs that were left by workers which may live.
    unsure: int
    #: Deaths, or such runs, that nobody has said anything of.
    news: int
    #: Id of the worker that has left the run that is looked into; empty for none.
    left_by: str = ""


def look(store: Store, settings: Settings, worker: str, *tasks: Asked) -> list[Finding]:
    """Look into tasks, in one step.

    Args:
        store: Where the workers are known.
        settings: Those of the app.
        worker: Id of the one that asks.
        tasks: Which.

    Returns:
        What there is to know of each.

    Raises:
        StoreAway: It may have been noted or not.
    """
    keys = [QUARANTINE, EPOCH]
    args: list[object] = [worker, f"{store.prefix}graceful:lease:"]
    args += [int(settings.poison_window * 1000), int(settings.lease_ttl * 1000)]
    args.append(settings.poison_limit)
    for task in tasks:
        keys += [f"graceful:started:{task.id}", f"graceful:deaths:{task.id}", release_key(task.id)]
        args += [task.id, task.death, task.message, "1" if task.alone else ""]
    return [Finding(*found) for found in store.run("redelivered", keys, args)]
