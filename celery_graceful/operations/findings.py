"""What somebody should look at, and the command that mends it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from celery_graceful.operations.history import Late
from celery_graceful.operations.pasting import pasted
from celery_graceful.operations.records import DeadWorker, Finding, Worker
from celery_graceful.operations.waiting import Waiting, say_waiting
from celery_graceful.system.describe import shortened

__all__ = ["Unknown", "findings_of"]

#: Heartbeats after which a worker that was not heard is frozen, or cut off; a slow one is late.
SILENT = 2.5

#: Seconds that a loop may take to go round.
LAG = 5.0

#: Seconds after the start of a broker in which its workers are back: Celery pauses for up to 30
#: between two tries, and asks its neighbours then.
RECONNECTED = 60.0

#: So many deaths within so many seconds are no accident: what dies is often another task each time.
DEATHS, RECENT = 3, 600.0


_NOWHERE: Mapping[str, int] = MappingProxyType({})


class Unknown(NamedTuple):
    """Who answers that has no lease.

    Attributes:
        plain: Names of workers without this package.
        leaseless: Names of those that have it, and no lease.
        away: Why the broker did not answer.
    """

    plain: Sequence[str] = ()
    leaseless: Sequence[str] = ()
    away: str = ""


_NOBODY = Unknown()
_NOTHING = Late()

#: Who moves to this package, or away from it, has plain workers on purpose.
_UNLESS_MEANT = "unless that is meant, have them use the same app"
_NONE = Waiting(Counter(), Counter())


def findings_of(
    workers: Sequence[Worker],
    dead: Sequence[DeadWorker],
    quarantined: int,
    batches_missing: Sequence[str],
    *,
    away: Sequence[str] = (),
    no_writes: Sequence[str] = (),
    replicas: Sequence[str] = (),
    waiting: Waiting = _NONE,
    unconsumed: Mapping[str, int] = _NOWHERE,
    without_claims: int = 0,
    batches_left: Sequence[str] = (),
    late: Late = _NOTHING,
    unknown: Unknown = _NOBODY,
    rabbit_away: str = "",
    broker_up: float = math.inf,
) -> Iterator[Finding]:
    """What is wrong with workers, and what waits for somebody.

    Args:
        workers: Those that live.
        dead: Those that do not.
        quarantined: How many tasks are in quarantine.
        batches_missing: Batches that miss members.
        away: Servers that do not answer, while others do.
        no_writes: Why servers take no writes. What leases say is old then.
        replicas: Servers that are none but replicas, in touch with their masters.
        waiting: What was set aside for a worker that knows its task.
        unconsumed: Messages that wait in queues that none of the workers consumes.
        without_claims: Messages that were taken by workers without claims.
        batches_left: Batches whose producer has died, and which nobody sends the rest of.
        late: What has died, or was cut off, within the last minutes.
        unknown: Who answers, where that was asked: no worker is known, or some are without claims.
        rabbit_away: Why RabbitMQ does not answer, where workers are known.
        broker_up: Seconds since the Redis that is the broker has started.
    """
    for server in away:
        mend = "look at it: what workers claimed there waits for it"
        yield Finding(f"{server} does not answer", mend, is_command=False)
    if rabbit_away:
        mend = "look at it: workers run what they hold, and get nothing more"
        yield Finding(f"the broker does not answer: {rabbit_away}", mend, is_command=False)
    for why in no_writes:
        yield Finding(f"Redis takes no writes: {why}", "doctor")
    for server in replicas:
        mend = "name its master, or Sentinels, as the broker: commands that write do not work here"
        yield Finding(f"{server} is a replica: this may be a moment old", mend, is_command=False)
    if no_writes:
        workers, dead, waiting = (), (), _NONE
    elif not workers:
        yield _of_nobody(unknown, sum(unconsumed.values()))
    reconnects = bool(rabbit_away) or broker_up < RECONNECTED
    for worker in workers:
        yield from _of(worker, reconnects=reconnects)
    for one in dead:
        if one.claims:
            held = _count(one.claims, "message")
            yield Finding(f"{one.name} is dead and holds {held}", "rescue")
    if waiting.unseen:
        yield Finding(say_waiting(waiting.unseen, is_seen=False), "rescue")
    # Else those that live know the tasks, and have no room yet.
    if waiting.seen and any(worker.unknown_tasks for worker in workers):
        mend = "deploy a worker that knows their tasks"
        yield Finding(say_waiting(waiting.seen), mend, is_command=False)
    if without_claims:
        what = f"{_count(without_claims, 'message')} at workers without claims (plain Celery)"
        mend = f"kill -9 there costs an hour, or the message: {_UNLESS_MEANT}"
        if unknown.plain:
            what += f": {_names(unknown.plain)}"
        elif not unknown.away:
            what += ", none of which answers"
            mend = (
                "if they were killed, each comes back when why ID says: after an hour, by default"
            )
        yield Finding(what, mend, is_command=False)
    if late.deaths >= DEATHS:
        what = f"{late.deaths} processes died in their tasks within {RECENT / 60:g} min"
        yield Finding(f"{what}, the last {late.died_ago:.0f} s ago", "history")
    if late.cut_off:
        what = f"{_names(late.cut_off)} stopped, and did not get to give back what was held there"
        yield Finding(what, "history")
    if quarantined:
        yield Finding(f"{_count(quarantined, 'task')} in quarantine", "quarantine list")
    if batches_missing:
        named = _count(len(batches_missing), "batch", "batches")
        yield Finding(f"{named} with missing members", "batches list --missing")
    if batches_left:
        named = _count(len(batches_left), "batch", "batches")
        what = f"{named} sent in part by a producer that has died, or failed"
        yield Finding(what, "batches list --left")
    if workers:  # the last: there may be many of them
        for queue, count in unconsumed.items():
            what = f"{_count(count, 'message')} in the queue {queue}, which none of these consumes"
            yield Finding(what, f"start a worker with --queues {queue}", is_command=False)


def _of_nobody(unknown: Unknown, waiting: int) -> Finding:
    """No worker is known."""
    what, mend = "no worker is running", "start one"
    if unknown.leaseless:
        what = f"no worker has a lease, but {_names(unknown.leaseless)} answer"
        what += "s" * (len(unknown.leaseless) == 1)
        mend = "read what they log: they were taken for dead, or do not reach Redis"
    elif unknown.plain:
        what = f"no worker runs with celery_graceful, but without it: {_names(unknown.plain)}"
        mend = f"nothing is known of what they do: {_UNLESS_MEANT}"
    elif unknown.away:
        what = f"no worker is known, and the broker does not answer: {unknown.away}"
        mend = "look at the broker: nobody can take a message"
    if waiting:
        what += f", and {_count(waiting, 'message')} waiting"
    return Finding(what, mend, is_command=False)


def _names(nodes: Sequence[str]) -> str:
    return shortened(nodes, 3)


def _of(worker: Worker, *, reconnects: bool) -> Iterator[Finding]:
    process = f"look at process {worker.pid} on {worker.host}"
    if worker.heard > SILENT * worker.heartbeat:
        what = f"{worker.name} was not heard for {worker.heard:.0f} s"
        yield Finding(what, f"{process}: it is frozen, cut off, or dead", is_command=False)
    elif worker.loop_lag > LAG and not (
        reconnects or (worker.tasks_keep_loop and worker.running_count)
    ):
        what = f"the loop of {worker.name} has not gone round for {worker.loop_lag:.0f} s"
        yield Finding(what, f"{process}: something holds it", is_command=False)
    if worker.phase == "quiet" and worker.seconds_left is None:
        yield Finding(
            f"{worker.name} is quiet: it fetches nothing", pasted(["resume"], worker.name)
        )


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
