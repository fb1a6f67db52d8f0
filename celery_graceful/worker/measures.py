"""What the metrics of a worker say of it: made where somebody wants them, else nothing is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from celery_graceful.batches.findings import how_many
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.membership.broker_servers import Servers
from celery_graceful.monitors.registry import monitors_of
from celery_graceful.phases import Phase
from celery_graceful.poison.quarantine import count
from celery_graceful.settings import Settings
from celery_graceful.store.app_stores import find_store, find_workers_store
from celery_graceful.system.process import Owner
from celery_graceful.timeline.board import Board

if TYPE_CHECKING:
    from celery_graceful.metrics.worker_metrics import Page

__all__ = ["Metrics", "metrics_of"]


class Metrics(Protocol):
    """Those of one worker, as its other parts see them."""

    def start(self) -> Mapping[str, Page]:
        """Begin to count; pages that are read over HTTP, by path."""

    def drained(self, took: float, left: float) -> None:
        """The worker was asked to stop, and has: in so many seconds, of the grace and left."""

    def end(self) -> None:
        """The worker ends, and its process may go on."""


class _None:
    """Nobody wants any."""

    def start(self) -> Mapping[str, Page]:
        return {}

    def drained(self, took: float, left: float) -> None: ...

    def end(self) -> None: ...


def metrics_of(
    worker: Any, settings: Settings, board: Board, ledger: Ledger, places: Servers, owner: Owner
) -> Metrics:
    """The metrics of a worker.

    Args:
        worker: Celery's ``WorkController``.
        settings: What the user set.
        board: What its processes share.
        ledger: What it holds.
        places: Where it is a member.
        owner: Of what the process has from it.
    """
    if not settings.metrics:
        return _None()
    from celery_graceful.metrics.worker_metrics import WorkerMetrics

    app = worker.app
    return WorkerMetrics(
        app,
        settings,
        board,
        pool=worker.pool_cls.__module__.rpartition(".")[2],
        reporters=monitors_of(app).dispatch.known,
        owner=owner,
        gauges=lambda: _gauges(board, ledger, places),
        fleet=lambda: _fleet(app),
        find_store=lambda: find_store(app),
    )


def _gauges(board: Board, ledger: Ledger, places: Servers) -> dict[tuple[str, ...], float]:
    phase = board.phase
    found: dict[tuple[str, ...], float] = {}
    found |= {("phase", each.name.lower()): float(each is phase) for each in Phase}
    found["running_tasks",] = sum(r.started_at is not None for r in ledger.active())
    for name, value in (
        ("claims_held", places.claims_held),
        ("lease_age_seconds", places.lease_age),
        ("loop_lag_seconds", places.loop_lag),
    ):
        if value is not None:
            found[name,] = value
    return found


def _fleet(app: Any) -> dict[str, float]:
    """What Redis knows of all workers of the app.

    Raises:
        StoreAway: It does not answer.
    """
    found: dict[str, float] = {}
    store, workers = find_store(app), find_workers_store(app)
    if store is not None:
        found["batches"], found["batch_members_missing"] = how_many(store)
    if workers is not None:
        found["quarantine_tasks"] = count(workers)
    return found
