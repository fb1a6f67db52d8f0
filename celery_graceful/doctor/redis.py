"""The Redis servers that keep claims, leases, checkpoints and batches."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from math import inf

from celery.backends.base import DisabledBackend
from celery.backends.redis import SentinelBackend
from kombu.transport.redis import SentinelTransport

from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.claims.server_checks import may_be_dropped, says_nothing, too_old
from celery_graceful.doctor.examination import Examination
from celery_graceful.doctor.findings import Check, Severity, Trouble
from celery_graceful.exceptions import UnknownBatch
from celery_graceful.store.store import StoreForbidden, StoreInCluster, StoreIsReplica

__all__ = ["CHECKS"]

#: Seconds that a round trip may take: each fetch, and each question of a task, waits for one.
NEAR = 0.001

#: Seconds for which a master that hangs may be waited for.
QUICKLY = 30.0

#: Batches that are looked at, those first that have stood still for longest.
BATCHES = 100


def no_store(exam: Examination) -> Iterator[Trouble]:
    """CG201: nowhere to keep anything."""
    if exam.store is None:
        yield Trouble(
            "graceful_store",
            None,
            "neither the broker nor the result backend is a Redis: no checkpoints, no batches, no "
            "quarantine, and check-ins end with their worker",
            "set graceful_store to the URL of a Redis",
        )


def another_store(exam: Examination) -> Iterator[Trouble]:
    """CG202: what belongs together is on two servers."""
    store, broker = exam.store, exam.broker
    if store is None or broker is None or store is broker:
        return
    if store.address != broker.address:
        yield Trouble(
            "graceful_store",
            store.address,
            f"the broker is at {broker.address}: the end of a member of a batch is told after its "
            "acknowledgement and not with it, and each of the two may be away alone",
            "nothing, if it is meant; else leave graceful_store out",
        )


def old_servers(exam: Examination) -> Iterator[Trouble]:
    """CG203: a Redis that has not what claims need."""
    for server in exam.servers:
        version = too_old(server.info("server"))
        if version:
            yield Trouble(server.name, version, "claims need 6.2 or later", "update it")


def evicting_servers(exam: Examination) -> Iterator[Trouble]:
    """CG204: a Redis that drops keys when its memory is full."""
    for server in exam.servers:
        found = may_be_dropped(server.info("memory"))
        if found is not None:
            yield Trouble(
                f"maxmemory-policy of {server.name}",
                found.policy,
                f"when its memory is full it may drop keys: leases and {found.what}",
                "CONFIG SET maxmemory-policy noeviction, there and in its configuration",
                Severity.WARNING if found.only_volatile else Severity.ERROR,
            )


def forgetful_servers(exam: Examination) -> Iterator[Trouble]:
    """CG205: a Redis that keeps nothing on disk."""
    for server in exam.servers:
        if str(server.info("persistence").get("aof_enabled", "")) == "1":
            continue
        snapshots = server.setting("save")
        if snapshots is None:
            exam.unchecked[f"persistence of {server.name}"] = "CONFIG GET is not allowed"
        elif not snapshots.strip():
            yield Trouble(
                f"persistence of {server.name}",
                "off",
                "it comes back empty from a restart: what waits in queues is lost, and so are "
                "checkpoints and batches",
                "CONFIG SET appendonly yes, there and in its configuration",
            )


def distant_servers(exam: Examination) -> Iterator[Trouble]:
    """CG206: a Redis that is far away."""
    for server in exam.servers:
        if server.round_trip > NEAR:
            yield Trouble(
                f"the way to {server.name}",
                f"{server.round_trip * 1000:.1f} ms",
                "each fetch and each save waits for it at the least: more than 1 ms is another "
                "zone, a tunnel or a proxy",
                "put workers and Redis into one zone; or fetch more at a time "
                "(worker_prefetch_multiplier)",
            )


def missing(exam: Examination) -> Iterator[Trouble]:
    """CG207: rights that the user of a Redis lacks."""
    for server, rights in exam.lacking:
        if rights in ([], ["+info"]):  # CG208 has the second
            continue
        lacking, user = " ".join(rights), server.store.user
        yield Trouble(
            f"user {user} of {server.name}",
            f"lacks {lacking}",
            "what needs it does not work; without keys of ours, or what scripts do with them, "
            "reliable fetch is off, and kill -9 of a worker loses messages"
            if server.is_broker
            else "what is to be kept there is not",
            f"ACL SETUSER {user} {lacking}",
        )


def silent_servers(exam: Examination) -> Iterator[Trouble]:
    """CG208: a Redis that does not say which server it is."""
    told = [server for server, rights in exam.lacking if len(rights) > 1 and "+info" in rights]
    for server in exam.servers:
        if says_nothing(server.info("server")) and server not in told:
            yield Trouble(
                f"user {server.store.user} of {server.name}",
                "lacks +info",
                "after its start, and longer after each lost connection, a worker takes nobody for "
                "dead for a lease's time",
                f"ACL SETUSER {server.store.user} +info",
            )


def lagging_replicas(exam: Examination) -> Iterator[Trouble]:
    """CG209: a master that goes on alone when it is cut off from its replicas."""
    for server in exam.servers:
        info = server.info("replication")
        replicas = int(info.get("connected_slaves") or 0)
        # Said only where both min-replicas-to-write and min-replicas-max-lag are set.
        if replicas and "min_slaves_good_slaves" not in info:
            yield Trouble(
                f"min-replicas-to-write of {server.name}",
                0,
                f"it has {replicas} replica{'s' * (replicas > 1)}, and takes writes that none of "
                "them hears of: after a failover those are undone, tasks that had ended run again",
                "CONFIG SET min-replicas-to-write 1, with a short min-replicas-max-lag",
            )


def short_results(exam: Examination) -> Iterator[Trouble]:
    """CG210: results that are gone before what waits for them has ended."""
    expires = exam.app.conf.result_expires
    seconds = expires.total_seconds() if isinstance(expires, dt.timedelta) else expires
    if not seconds or isinstance(exam.app.backend, DisabledBackend):
        return
    setting = "result_expires"
    mend = "raise result_expires"
    longer = [
        f"{task.name} ({exam.limit(task):g} s)"
        for task in exam.tasks
        if not task.ignore_result and exam.limit(task) > seconds
    ]
    if longer:
        yield Trouble(
            setting,
            seconds,
            f"tasks may run for longer: {', '.join(longer)}: results of what ran beside them are "
            "gone before they end",
            mend,
        )
    if exam.store is None or not any(server.store is exam.store for server in exam.servers):
        return
    ledger, now = BatchLedger(exam.store), time.time()
    for batch in ledger.stood_still(0)[:BATCHES]:
        try:
            age = now - ledger.status(batch).created
        except UnknownBatch:
            continue  # it has ended meanwhile
        if age > seconds:
            yield Trouble(
                setting,
                seconds,
                f"the batch {batch} has not ended for {age:.0f} s: results of its first members "
                "are gone",
                mend,
            )


def visibility_timeouts(exam: Examination) -> Iterator[Trouble]:
    """CG211: a broker that gives a message to another worker after a time, though it runs."""
    channel = getattr(exam.connection.transport, "Channel", None)  # RabbitMQ's has none
    if not hasattr(channel, "visibility_timeout") or exam.claims:
        return
    name = "visibility_timeout"
    given = (exam.app.conf.broker_transport_options or {}).get(name)
    default = getattr(channel, f"default_{name}", getattr(channel, name))
    seconds = default if given is None else given
    longer = [t for t in exam.tasks if t.acks_late and (exam.limit(t) or inf) > seconds]
    for task in longer:
        limit = exam.limit(task)
        takes = f"{limit:g} s" if limit else "any time: it has no time_limit"
        yield Trouble(
            f"broker_transport_options[{name!r}]",
            seconds,
            f"{task.name} may take {takes}; after that timeout it is delivered again and runs "
            "beside itself",
            f"give {task.name} a time_limit below it, raise it, or, with Redis, leave "
            "graceful_reliable_fetch on",
        )


def no_writes(exam: Examination) -> Iterator[Trouble]:
    """CG212: a Redis that takes no writes."""
    for server in exam.servers:
        if server.no_writes:
            limit = str(server.info("memory").get("maxmemory_human", ""))
            full = "maxmemory" in str(server.no_writes)
            yield Trouble(
                server.name,
                server.bare(server.no_writes),
                "nothing can be sent, claimed or saved: leases run out, and workers that live look "
                "dead",
                f"raise maxmemory ({limit or 'not known'}), or delete keys: redis-cli --bigkeys "
                "names the largest"
                if full
                else "name its master, or Sentinels"
                if isinstance(server.no_writes, StoreIsReplica)
                else "look at that server: its log, its disk, its replicas",
            )


def hanging_masters(exam: Examination) -> Iterator[Trouble]:
    """CG213: a master that hangs is waited for, though Sentinels would name another one."""
    conf = exam.app.conf
    if isinstance(exam.connection.transport, SentinelTransport):
        options, channel = conf.broker_transport_options or {}, exam.connection.transport.Channel
        for name in ("socket_timeout", "health_check_interval"):
            seconds = options.get(name, getattr(channel, name))
            if not 0 < (seconds or 0) <= QUICKLY:
                yield Trouble(
                    f"broker_transport_options[{name!r}]",
                    seconds,
                    "a master that hangs is waited for, though Sentinels would name another one: "
                    "nothing is fetched meanwhile",
                    f"set {name} to 5",
                )
    backend = exam.app.backend
    if isinstance(backend, SentinelBackend):
        seconds = backend.connparams.get("socket_timeout")
        if not 0 < (seconds or 0) <= QUICKLY:
            yield Trouble(
                "redis_socket_timeout",
                seconds,
                "a task whose result goes to a master that hangs waits for so long, and keeps its "
                "place in the pool, though Sentinels would name another one",
                "set redis_socket_timeout to 5",
            )


def clusters(exam: Examination) -> Iterator[Trouble]:
    """CG214: a Redis Cluster whose slots keep apart what belongs together."""
    for server in exam.servers:
        if server.is_results:
            continue
        try:
            server.store.check_slots()
        except StoreForbidden:
            continue  # CG207
        except StoreInCluster as exc:
            yield Trouble(
                server.name,
                exc.said.removeprefix(f"{server.store.source}: "),
                "nothing that takes more than one key works there: no claims, no leases, no "
                "checkpoints, no batches",
                exc.mend,
            )


CHECKS = (
    Check("CG201", Severity.WARNING, no_store),
    Check("CG202", Severity.NOTE, another_store),
    Check("CG203", Severity.ERROR, old_servers),
    Check("CG204", Severity.ERROR, evicting_servers),
    Check("CG205", Severity.WARNING, forgetful_servers),
    Check("CG206", Severity.WARNING, distant_servers),
    Check("CG207", Severity.ERROR, missing),
    Check("CG208", Severity.WARNING, silent_servers),
    Check("CG209", Severity.WARNING, lagging_replicas),
    Check("CG210", Severity.WARNING, short_results),
    Check("CG211", Severity.WARNING, visibility_timeouts),
    Check("CG212", Severity.ERROR, no_writes),
    Check("CG213", Severity.WARNING, hanging_masters),
    Check("CG214", Severity.ERROR, clusters),
)
