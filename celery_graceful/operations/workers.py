"""Who works, and who has died: read from leases, which need no worker to answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from celery_graceful.claims.claimant import FALLEN, WORKERS, claims_key, lease_key, node_of
from celery_graceful.claims.lease import about_key
from celery_graceful.operations.checkpoints import read_all
from celery_graceful.operations.records import Checkpoint, DeadWorker, RunningTask, Worker, utc
from celery_graceful.operations.stores import Stores
from celery_graceful.settings import Settings
from celery_graceful.store.store import Store
from celery_graceful.system.portions import portions

__all__ = ["dead_of", "ids_of", "workers_of"]

#: How a heartbeat names what runs.
_NAMED = re.compile(r"(.*?)\[(.*)\]", re.DOTALL)

#: Where it is known, its id, its heartbeat, and what stays known of it.
_Living = tuple[Store, str, dict[str, Any], dict[str, Any]]


def workers_of(stores: Stores, settings: Settings) -> list[Worker]:
    """Workers whose lease runs, by name.

    Args:
        stores: Where they are known.
        settings: For what a heartbeat does not say.

    Raises:
        StoreAway: No server answers.
    """
    living = list(_living(stores))
    left = {id_: held for store in stores.workers for id_, held in _held(store, living)}
    tasks = [task for _, _, beat, _ in living for _, task in _named(beat)]
    saved = read_all(stores.store, tasks)
    found = [
        _worker(stores, worker, left[worker], beat, about, settings, saved)
        for _, worker, beat, about in living
        if worker in left
    ]
    return sorted(found, key=lambda worker: (worker.name, worker.since))


def ids_of(stores: Stores) -> list[str]:
    """Ids of workers whose lease runs.

    Raises:
        StoreAway: No server answers.
    """
    return sorted(worker for _, worker, _, _ in _living(stores))


def _living(stores: Stores) -> Iterator[_Living]:
    for store in stores.workers:
        for worker, beat, about in _known(store):
            if beat and about.get("broker", "") in stores.brokers:
                yield store, worker, beat, about


def dead_of(stores: Stores) -> list[DeadWorker]:
    """Workers whose lease has run out, and those that were taken for dead and hold claims.

    Raises:
        StoreAway: No server answers.
    """
    found = []
    for store in stores.workers:
        fallen = store.execute("SMEMBERS", [FALLEN], insist=True)
        gone = {
            worker
            for worker, beat, about in _known(store)
            if not beat and about.get("broker", "") in stores.brokers
        }
        for worker in sorted(gone.union(fallen)):
            claims = int(store.execute("HLEN", [claims_key(worker)], insist=True))
            found.append(DeadWorker(worker, node_of(worker), claims, worker in fallen))
    return found


def _known(store: Store) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Who has registered: its id, its heartbeat, and what stays known of it.

    A heartbeat is empty where a lease has run out, and a task that still runs has renewed it since
    (``still_mine.lua``): that keeps others from what the worker holds, and says nothing of it.
    """
    workers = sorted(store.execute("SMEMBERS", [WORKERS], insist=True))
    if not workers:
        return
    beats: Sequence[str | None] = store.execute("MGET", list(map(lease_key, workers)))
    abouts = store.execute("MGET", list(map(about_key, workers)))
    for worker, beat, about in zip(workers, beats, abouts, strict=True):
        yield worker, json.loads(beat or "{}"), json.loads(about or "{}")


def _held(store: Store, living: Sequence[_Living]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Of workers on one server: milliseconds that their leases still run, and claims."""
    here = [worker for where, worker, _, _ in living if where is store]
    for some in portions(here, len):
        keys = [key for worker in some for key in (lease_key(worker), claims_key(worker))]
        answers = store.run("held", keys, [], insist=True)
        yield from zip(some, ((int(left), int(held)) for left, held in answers), strict=True)


def _worker(
    stores: Stores,
    worker: str,
    left_and_claims: tuple[int, int],
    beat: Mapping[str, Any],
    about: Mapping[str, Any],
    settings: Settings,
    saved: Mapping[tuple[str, str], Checkpoint],
) -> Worker:
    left, claims = left_and_claims
    changed = beat.get("phase_since")
    heard = max(0.0, float(beat.get("ttl", settings.lease_ttl)) - left / 1000)
    seconds_left = beat.get("seconds_left")
    named = list(_running(beat, saved))
    return Worker(
        id=worker,
        name=node_of(worker),
        host=str(beat.get("host", "")),
        pid=int(beat.get("pid", 0)),
        app=str(about.get("app", "")),
        phase=str(beat.get("phase", "")).lower(),
        phase_since=None if changed is None else utc(changed),
        since=utc(float(beat.get("since", 0))),
        seconds_left=None if seconds_left is None else round(max(0.0, seconds_left - heard), 1),
        heard=heard,
        heartbeat=float(beat.get("every", settings.heartbeat_interval)),
        pool=str(beat.get("pool", "")),
        concurrency=int(beat.get("concurrency") or 1),
        loop_lag=float(beat.get("loop_lag", 0)),
        queues=tuple(beat.get("queues", ())),
        running=tuple(named),
        running_count=int(beat.get("running_count", len(named))),
        claims=claims if stores.with_claims else None,
        unknown_tasks=int(beat.get("unknown_tasks", 0)),
        process=str(beat.get("process", "")),
        tasks_keep_loop=bool(beat.get("tasks_keep_loop", False)),
    )


def _named(beat: Mapping[str, Any]) -> Iterator[tuple[int, tuple[str, str]]]:
    """What runs: at which place of the heartbeat it is, and its name and id."""
    for at, text in enumerate(beat.get("running", ())):
        named = _NAMED.fullmatch(text)
        if named is not None:
            yield at, (named[1], named[2])


def _running(
    beat: Mapping[str, Any], saved: Mapping[tuple[str, str], Checkpoint]
) -> Iterator[RunningTask]:
    seconds = beat.get("running_for", ())
    for at, (name, task_id) in _named(beat):
        lasted = seconds[at] if at < len(seconds) else None
        yield RunningTask(task_id, name, lasted, saved.get((name, task_id)))
