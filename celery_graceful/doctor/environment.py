"""What stands around a worker: what starts it, its pool and broker, and other workers."""

from __future__ import annotations

import json
import os
import shlex
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import celery
from celery.concurrency import ALIASES
from celery.utils.imports import symbol_by_name
from celery.utils.nodenames import default_nodename, node_format
from celery.worker.request import Request

import celery_graceful_probe
from celery_graceful.claims.claimant import WORKERS, lease_key, node_of
from celery_graceful.doctor.entry_point import (
    SHELLS,
    Started,
    for_a_shell,
    in_front,
    read_dockerfile,
)
from celery_graceful.doctor.examination import CannotCheck, Examination
from celery_graceful.doctor.findings import Check, Severity, Trouble
from celery_graceful.exceptions import SettingsError
from celery_graceful.messages.amqp import is_amqp
from celery_graceful.operations.plain_workers import count_unacked
from celery_graceful.pools import what_keeps_from_cutting
from celery_graceful.probes.endpoint import Endpoint, PortTaken
from celery_graceful.store.app_stores import is_kombus_redis
from celery_graceful.store.connections import unconnected_channel
from celery_graceful.system.describe import describe, shortened
from celery_graceful.system.version import VERSION

__all__ = ["CHECKS"]

#: Signals that a worker drains at, as Docker reads them: by name or number, SIG may be left out.
DRAINS = {"TERM", "15", "INT", "2"}

COMMAND = "--command"

EXEC = "begin its last command with exec; in a Dockerfile, write ENTRYPOINT and CMD as JSON"


def shells_in_front(exam: Examination) -> Iterator[Trouble]:
    """CG601: a shell that keeps the stop signal for itself."""
    if "DYNO" in exam.environ:
        return  # Heroku signals all processes, whatever a shell does
    for thing, started in _started(exam):
        word = for_a_shell(started.argv) if thing == COMMAND else None
        if word is not None:
            exam.unchecked[f"what {thing} starts"] = (
                f"{word!r} is for a shell, and nobody here knows which: where one is the first "
                "process, say --command \"sh -c '...'\"; where all processes are signalled, as on "
                "Heroku, it does no harm; where there is none, this starts no worker"
            )
            continue
        try:
            found = in_front(started.argv, started.folder)
        except (OSError, ValueError) as exc:
            exam.unchecked[f"what {thing} starts"] = f"{shlex.join(started.argv)}: {exc!r}"
            continue
        if found is not None:
            shell, sure = found
            yield Trouble(
                thing,
                shell,
                "the shell gets SIGTERM and keeps it: the worker hears nothing, and is killed when "
                "the grace is over"
                if sure
                else "some shells put the command into their place and some do not: then the "
                "worker hears nothing of SIGTERM",
                EXEC,
                Severity.ERROR if sure else Severity.WARNING,
            )
    shell_at_1 = _first_process(exam)
    if shell_at_1:
        yield Trouble(
            "the first process (PID 1)",
            shell_at_1,
            "a shell has started a worker here and waits for it: it gets SIGTERM and keeps it",
            EXEC,
        )


def _started(exam: Examination) -> Iterator[tuple[str, Started]]:
    if exam.dockerfile is not None:
        try:
            yield str(exam.dockerfile), read_dockerfile(exam.dockerfile)
        except (OSError, UnicodeError) as exc:
            raise CannotCheck(str(exam.dockerfile), repr(exc)) from exc
    if exam.command is not None:
        try:
            argv = shlex.split(exam.command)
        except ValueError as exc:
            raise CannotCheck(COMMAND, str(exc)) from exc
        yield COMMAND, Started(argv, folder=Path.cwd())


def _first_process(exam: Examination) -> str | None:
    """The command line of PID 1, where it is a shell, and a worker is its child."""
    first = _command_line(exam, "1")
    if not first or Path(first[0]).name.lstrip("-") not in SHELLS:
        return None
    try:
        children = (exam.root / "proc/1/task/1/children").read_text().split()
    except OSError:
        return None
    for child in children:
        argv = _command_line(exam, child)
        if "worker" in argv and any("celery" in Path(word).name for word in argv[:3]):
            return shlex.join(first)
    return None


def _command_line(exam: Examination, pid: str) -> list[str]:
    try:
        return (exam.root / "proc" / pid / "cmdline").read_text(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def other_signals(exam: Examination) -> Iterator[Trouble]:
    """CG602: containers that are stopped by a signal that does not drain."""
    for thing, started in _started(exam):
        if started.stop_signal is not None and _name(started.stop_signal) not in DRAINS:
            yield Trouble(
                f"STOPSIGNAL in {thing}",
                started.stop_signal,
                "a worker drains at SIGTERM; SIGQUIT jumps to the hard deadline, and others end it "
                "at once",
                "take it out",
            )


def _name(signal: str) -> str:
    return str(int(signal)) if signal.isdecimal() else signal.upper().removeprefix("SIG")


def unusable_pools(exam: Examination) -> Iterator[Trouble]:
    """CG608: a pool that there is not."""
    custom = exam.environ.get("CELERY_CUSTOM_WORKER_POOL", "")
    named = {"CELERY_CUSTOM_WORKER_POOL": custom, "worker_pool": exam.app.conf.worker_pool}
    for thing, pool in named.items():
        if not pool or pool in ALIASES:
            continue
        try:
            symbol_by_name(pool)
        except Exception as exc:  # users' code may raise anything
            yield Trouble(
                thing,
                pool,
                f"no worker starts with it: {describe(exc)}",
                f"name one of {', '.join(sorted(ALIASES))}, or a class that can be imported "
                "(module:Class)",
            )


def foreign_pools(exam: Examination) -> Iterator[Trouble]:
    """CG603: a pool of which nothing is known."""
    custom = exam.environ.get("CELERY_CUSTOM_WORKER_POOL", "")
    named = {"CELERY_CUSTOM_WORKER_POOL": custom, "worker_pool": exam.app.conf.worker_pool}
    for thing, pool in named.items():
        if not pool or pool in ALIASES:
            continue  # to import some of Celery's own changes the process
        try:
            cls = symbol_by_name(pool)
        except Exception:  # users' code may raise anything; CG608 says so
            continue
        keeps = what_keeps_from_cutting(cls)
        if keeps is not None:
            why, mend = keeps
            yield Trouble(
                thing,
                pool,
                f"it {why}: its tasks are not cut short when a worker stops, they end by "
                "themselves, or are given up at the hard deadline",
                mend,
            )


def transports_without_claims(exam: Examination) -> Iterator[Trouble]:
    """CG604: brokers that lose what a killed worker held, or give it back late."""
    transport = exam.connection.transport
    if is_amqp(exam.connection) or not exam.settings.reliable_fetch or exam.claims:
        return
    from celery_graceful.claims.claiming_transports import what_keeps_from_claiming

    if is_kombus_redis(transport):
        with unconnected_channel(transport) as channel:
            why = what_keeps_from_claiming(transport, channel)
    else:
        why = what_keeps_from_claiming(transport, None)
    cls = type(transport)
    yield Trouble(
        "the broker's transport",
        f"{cls.__module__}.{cls.__qualname__}",
        f"reliable fetch is off: {why}. What a killed worker held is lost, or comes back after a "
        "time-out of the broker's own",
        "use redis:// or amqp://, or set graceful_reliable_fetch = False if it is meant",
    )


def foreign_requests(exam: Examination) -> Iterator[Trouble]:
    """CG605: request classes that stand below ours."""
    for task in exam.tasks:
        cls = symbol_by_name(task.Request)
        cls = vars(cls).get("plain", cls)  # a worker in this process has adopted the task
        if cls is Request:
            continue
        derived = issubclass(cls, Request)
        yield Trouble(
            f"{task.name}.Request",
            f"{cls.__module__}.{cls.__qualname__}",
            "its methods are called after ours: what is interrupted or given up comes to neither "
            "its on_failure nor its on_retry"
            if derived
            else "it is not derived from Celery's: its methods are not called where Celery's has "
            "one of the same name",
            "nothing, if it only watches ends"
            if derived
            else "derive it from celery.worker.request.Request",
            Severity.NOTE if derived else Severity.WARNING,
        )


def no_events(exam: Examination) -> Iterator[Trouble]:
    """CG606: somebody listens to events, and workers send none."""
    conf = exam.app.conf
    if conf.worker_send_task_events:
        return
    wanted = "task_send_sent_event is on" if conf.task_send_sent_event else ""
    for server in [one for one in exam.servers if one.is_broker]:
        bound = server.store.execute("SMEMBERS", [f"_kombu.binding.{conf.event_exchange}"])
        # Workers listen to each other, for what their kind says alone: worker.#
        if any(one.startswith(("#", "task", "*")) for one in bound):
            wanted = "somebody listens to events of tasks at the broker"
    if wanted:
        yield Trouble(
            "worker_send_task_events",
            False,
            f"{wanted}, such as Flower or an exporter; workers say nothing of tasks, unless they "
            "are started with -E, or told to by remote control",
            "set worker_send_task_events = True, or start workers with -E",
        )


def other_versions(exam: Examination) -> Iterator[Trouble]:
    """CG607: workers that run other code than this, or none of this package."""
    here = {"celery_graceful": VERSION, "celery": celery.__version__}
    others: dict[tuple[str, str], list[str]] = defaultdict(list)
    for server in exam.servers:
        workers = sorted(server.store.execute("SMEMBERS", [WORKERS]))
        beats = server.store.execute("MGET", [lease_key(w) for w in workers]) if workers else []
        for worker, beat in zip(workers, beats, strict=True):
            said = json.loads(beat or "{}")
            for package, version in here.items() if said else ():
                if said.get(package, "unknown") != version:
                    others[package, str(said.get(package, "unknown"))].append(node_of(worker))
    for (package, version), nodes in others.items():
        yield Trouble(
            f"{package} of {shortened(nodes, 5)}",
            version,
            f"here it is {here[package]}: workers of several versions share queues, claims and "
            "checkpoints",
            "nothing during a deploy; else deploy all of them",
        )
    without = _without_claims(exam)
    if without:
        yield Trouble(
            "messages that were taken without claims",
            without,
            "a worker without celery_graceful, or of another app, fetches from here: what it holds "
            "comes back an hour after kill -9 (visibility_timeout), or not at all",
            "status names those that answer: stop them by SIGTERM; one image for all workers",
        )


def _without_claims(exam: Examination) -> int:
    if not (exam.settings.reliable_fetch and exam.claims):
        return 0
    brokers = [server.store for server in exam.servers if server.is_broker]
    return count_unacked(exam.connection.transport, brokers)


def unfit_probes(exam: Examination) -> Iterator[Trouble]:
    """CG609: a file or a port for probes that a worker could not have here."""
    settings = exam.settings
    mend = "{0}; or look where the worker runs"
    path = settings.probe_file or exam.environ.get(celery_graceful_probe.ENVIRON)
    if path:
        path = node_format(path, default_nodename(None))
        why = _why_not_writable(Path(path))
        if why:
            yield Trouble(
                "the file of probes", path, f"no worker starts here: {why}", mend.format("make it")
            )
    if settings.probe_port is None:
        return
    try:
        Endpoint(settings.probe_host, settings.probe_port, {}).close()
    except PortTaken:
        pass  # by a worker, most likely; and one starts all the same
    except SettingsError as exc:
        why = "no worker starts here"
        yield Trouble("the port of probes", exc.value, why, mend.format(exc.mend))


def _why_not_writable(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return "it may not be written"
    return ""


CHECKS = (
    Check("CG601", Severity.ERROR, shells_in_front),
    Check("CG602", Severity.WARNING, other_signals),
    Check("CG603", Severity.WARNING, foreign_pools),
    Check("CG604", Severity.WARNING, transports_without_claims),
    Check("CG605", Severity.NOTE, foreign_requests),
    Check("CG606", Severity.NOTE, no_events),
    Check("CG607", Severity.WARNING, other_versions),
    Check("CG608", Severity.ERROR, unusable_pools),
    Check("CG609", Severity.WARNING, unfit_probes),
)
