"""All metrics: what each is called, and what it says.

Names are those of Prometheus without ``celery_graceful_`` and what the kind adds (``_total``);
OpenTelemetry has dots, and units beside them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["BY_NAME", "CATALOG", "PREFIX", "Kind", "Metric"]

PREFIX = "celery_graceful"


class Kind(enum.Enum):
    """How it goes."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: For Prometheus, without prefix and suffix.
        otel: For OpenTelemetry, without the prefix.
        unit: There; seconds and bytes are in Prometheus' names as well.
        kind: How it goes.
        help: What it says.
        labels: By what it is told apart. Never by an id.
        buckets: Upper bounds, of a histogram.
        fleet: It is read from Redis: each worker says the same of all.
    """

    name: str
    otel: str
    unit: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    fleet: bool = False

    @property
    def prometheus(self) -> str:
        """Its whole name there."""
        return f"{PREFIX}_{self.name}{'_total' if self.kind is Kind.COUNTER else ''}"

    @property
    def opentelemetry(self) -> str:
        """Its whole name there."""
        return f"{PREFIX}.{self.otel}"


_SECONDS = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0)

CATALOG: tuple[Metric, ...] = (
    Metric(
        "interruptions",
        "task.interruptions",
        "{interruption}",
        Kind.COUNTER,
        "Tasks that were interrupted and went back to their queue",
        ("reason", "task", "pool"),
    ),
    Metric(
        "given_up",
        "task.given_up",
        "{task}",
        Kind.COUNTER,
        "Tasks that still ran at the hard deadline and were taken away",
        ("task",),
    ),
    Metric(
        "released",
        "message.released",
        "{message}",
        Kind.COUNTER,
        "Messages that went back before their tasks had begun",
        ("reason",),
    ),
    Metric(
        "rescued",
        "message.rescued",
        "{message}",
        Kind.COUNTER,
        "Messages of dead workers that this one gave back",
    ),
    Metric(
        "fenced",
        "task.fenced",
        "{task}",
        Kind.COUNTER,
        "Runs that ended here when another run was what counts",
        ("task",),
    ),
    Metric(
        "deaths",
        "task.deaths",
        "{death}",
        Kind.COUNTER,
        "Deaths of processes that ran a task, counted by this worker",
        ("task",),
    ),
    Metric(
        "quarantined",
        "task.quarantined",
        "{task}",
        Kind.COUNTER,
        "Messages that this worker put into quarantine",
        ("task",),
    ),
    Metric(
        "resumes",
        "task.resumes",
        "{resume}",
        Kind.COUNTER,
        "Deliveries that went on from what an earlier one had saved",
    ),
    Metric(
        "checkpoint_saves",
        "checkpoint.saves",
        "{save}",
        Kind.COUNTER,
        "Writes of checkpoints to the store",
    ),
    Metric(
        "checkpoint_saved_bytes",
        "checkpoint.saved",
        "By",
        Kind.COUNTER,
        "Bytes of cursors, states and results of steps in these writes",
    ),
    Metric(
        "check_ins",
        "check_ins",
        "{check_in}",
        Kind.COUNTER,
        "Check-ins of monitors that a server has taken",
        ("reporter", "status"),
    ),
    Metric(
        "batch_members_found_missing",
        "batch.members.found_missing",
        "{member}",
        Kind.COUNTER,
        "Members of batches that this worker reported as missing",
    ),
    Metric(
        "batch_members_resent",
        "batch.members.resent",
        "{member}",
        Kind.COUNTER,
        "Members of batches that were missing and that this worker sent again",
    ),
    Metric(
        "drain_seconds",
        "drain.duration",
        "s",
        Kind.HISTOGRAM,
        "Seconds from the request to stop to the end",
        buckets=_SECONDS,
    ),
    Metric(
        "grace_left_seconds",
        "drain.grace_left",
        "s",
        Kind.HISTOGRAM,
        "Seconds of grace that were left at the end; in the bucket of 0 none was",
        buckets=(0.0, *_SECONDS),
    ),
    Metric(
        "phase",
        "worker.phase",
        "1",
        Kind.GAUGE,
        "1 for the phase that the worker is in",
        ("phase",),
    ),
    Metric("running_tasks", "task.running", "{task}", Kind.GAUGE, "Tasks that run"),
    Metric(
        "claims_held",
        "claims.held",
        "{message}",
        Kind.GAUGE,
        "Messages that the worker has claimed on Redis",
    ),
    Metric(
        "lease_age_seconds",
        "lease.age",
        "s",
        Kind.GAUGE,
        "Seconds since the lease was renewed last",
    ),
    Metric(
        "loop_lag_seconds",
        "loop.lag",
        "s",
        Kind.GAUGE,
        "Seconds that the event loop took to go round, or has taken so far",
    ),
    Metric(
        "batches",
        "fleet.batches",
        "{batch}",
        Kind.GAUGE,
        "Batches that have not ended",
        fleet=True,
    ),
    Metric(
        "batch_members_missing",
        "fleet.batch.members.missing",
        "{member}",
        Kind.GAUGE,
        "Members that are missing, of the 1000 batches that have stood still longest",
        fleet=True,
    ),
    Metric(
        "quarantine_tasks",
        "fleet.quarantine",
        "{task}",
        Kind.GAUGE,
        "Messages in quarantine",
        fleet=True,
    ),
)

BY_NAME = {metric.name: metric for metric in CATALOG}
