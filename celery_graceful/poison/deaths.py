"""Poison tasks: the process that runs them dies, again and again.

A death is counted where a process died that was *running* the task; not where a message was
merely prefetched, given back, interrupted, or delivered again because a connection was lost or
a visibility timeout passed. At the ``graceful_poison_limit``-th within ``graceful_poison_window``
the task goes to quarantine instead of back to its queue, failed with ``PoisonedTask``.

Who is told of that, is told after the message is safe in quarantine: ``untold`` in the store
says what is still to be told, so a process that dies in between costs nobody the news.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from billiard.einfo import ExceptionInfo
from celery import signals as celery_signals
from celery.exceptions import NotRegistered
from celery.states import FAILURE
from celery.utils.log import get_logger
from celery.worker.request import Request
from celery.worker.strategy import proto1_to_proto2
from kombu.serialization import prepare_accept_content

from celery_graceful import signals
from celery_graceful.batches.callback_publishing import publish_all
from celery_graceful.batches.ends import has_failed
from celery_graceful.claims.claimant import claims_key, node_of
from celery_graceful.claims.rescue import DeadClaim
from celery_graceful.exceptions import PoisonedTask
from celery_graceful.history.entry import Entry, What
from celery_graceful.history.journal import record
from celery_graceful.messages.bounded_connections import bounded_connection, send_events
from celery_graceful.messages.fields import fields_of
from celery_graceful.monitors.outcome import close_dead
from celery_graceful.poison.owning_app import is_told_here, origin_of, same_results
from celery_graceful.poison.quarantine import QUARANTINE, UNTOLD, Kept, put
from celery_graceful.settings import Settings
from celery_graceful.store.app_stores import find_workers_store, settings_of
from celery_graceful.store.store import Store, fork_gate
from celery_graceful.system.describe import describe
from celery_graceful.system.log_thread import log
from celery_graceful.system.per_app import PerApp
from celery_graceful.system.portions import COUNT

__all__ = [
    "NOT_HEARD",
    "Death",
    "condemn",
    "count_deaths",
    "judge",
    "say_deaths",
    "statement_of",
    "take_back",
    "tell_untold",
]

logger = get_logger(__name__)

#: Failures told in one step, and seconds that they may take before somebody else tries.
TOLD_AT_ONCE, TELL_AGAIN = 20, 60

#: Seconds that the broker gets to take an event.
EVENT_TIMEOUT = 1.0

#: What is known of a worker whose lease ran out.
NOT_HEARD = "its worker is dead, or was frozen for longer than its lease"

#: Ids in quarantine that workers of other apps tell of.
_others: PerApp[set[str]] = PerApp()


#: What there is to tell listeners, by the node that tells it: types and fields.
Events = dict[str, list[tuple[str, dict[str, Any]]]]


class Death(NamedTuple):
    """What is known of the death of a process that ran a task.

    Attributes:
        worker: Id of the worker.
        what: In words.
        process: Tells processes apart: one that dies may take several tasks along.
    """

    worker: str = ""
    what: str = "the process that ran it has died"
    process: str = ""


def judge(
    app: Any,
    store: Store,
    worker: str,
    stated: Mapping[str, Any],
    running: Sequence[DeadClaim],
    *,
    tell: Callable[[], None],
) -> set[str]:
    """Count what a dead worker was running; what has died too often goes to quarantine.

    Safe to repeat, and to be done by two at once: a death is counted once, and whether the
    claim is still there decides.

    Args:
        app: The Celery app.
        store: Where the worker was known.
        worker: Id of the dead worker.
        stated: What it said of itself, see ``statement_of``.
        running: Its claims that ran. Those in quarantine are no claims any more.
        tell: Sees to it that ``tell_untold`` is called, not here: signal handlers and result
            backends belong to the hub of a green pool.

    Returns:
        The numbers of the claims that went to quarantine.

    Raises:
        StoreAway: The broker does not answer. What was done, is done.
    """
    if not running:
        return set()
    settings = _settings_for(app, stated)
    if not settings.poison_limit:
        return set()
    rest: dict[str, Any] = {"why": "", "deaths": 0, "worker": worker}
    rest |= {name: str(stated.get(name, "")) for name in ("app", "results")}
    claims = []
    for claim in running:
        try:
            kept = Kept.of_claim(claim.list, claim.message, **rest)
        except Exception as exc:  # no task: goes back as it is
            log(logger, logging.WARNING, "A message of %s cannot be read: %r", worker, exc)
        else:
            claims.append((claim.number, kept))
    taken: set[str] = set()
    for start in range(0, len(claims), COUNT):
        taken |= _judge(store, settings, worker, claims[start : start + COUNT])
    if taken:
        tell()
    return taken


def _judge(
    store: Store, settings: Settings, worker: str, claims: Sequence[tuple[str, Kept]]
) -> set[str]:
    """Some of them, in the same few steps however many they are: until then nothing goes back."""
    death = Death(worker, NOT_HEARD, worker)
    counts = count_deaths(store, settings, {kept.id: (worker, number) for number, kept in claims})
    died = [(number, replace(kept, deaths=counts[kept.id])) for number, kept in claims]
    goes_back = [kept for _, kept in died if kept.deaths < settings.poison_limit]
    say_deaths(store, settings, [(kept.task, kept.id, kept.deaths, death) for kept in goes_back])
    last = [(number, kept) for number, kept in died if kept.deaths >= settings.poison_limit]
    held = [(worker, number) for number, _ in last]
    done = condemn(store, settings, [(kept, death) for _, kept in last], held)
    return {number for (number, _), is_done in zip(last, done, strict=True) if is_done}


def statement_of(app: Any) -> dict[str, Any]:
    """What a worker says of itself while it lives, for who judges what it ran when it died."""
    settings = settings_of(app)
    limits = {"limit": settings.poison_limit, "window": settings.poison_window}
    return {**origin_of(app), "poison": limits}


def _settings_for(app: Any, stated: Mapping[str, Any]) -> Settings:
    """Ours, or the limits of the app that the dead worker was of."""
    settings, limits = settings_of(app), stated.get("poison")
    if limits is None or same_results(app, stated) or stated.get("app") == origin_of(app)["app"]:
        return settings
    return replace(settings, poison_limit=limits["limit"], poison_window=limits["window"])


def count_deaths(
    store: Store, settings: Settings, deaths: dict[str, tuple[str, str]]
) -> dict[str, int]:
    """Count one death for each task of one worker; how many there were.

    Args:
        store: Where the workers are known.
        settings: Those of the app.
        deaths: Task id -> worker and number of the claim, or the delivery and nothing. The same
            death is counted once, and one whose claim is gone not at all.

    Raises:
        StoreAway: It may have been counted or not.
    """
    keys: list[str] = []
    args = [str(int(settings.poison_window * 1000))]
    for task_id, (worker, number) in deaths.items():
        keys = keys or [claims_key(worker)]
        keys.append(f"graceful:deaths:{task_id}")
        args += [f"{worker}/{number}" if number else worker, number]
    counts = store.run("deaths", keys, args)
    return dict(zip(deaths, map(int, counts), strict=True))


def say_deaths(
    store: Store, settings: Settings, tasks: Iterable[tuple[str, str, int, Death]]
) -> None:
    """Say of tasks that have died what becomes of them; not where a death was not counted.

    Args:
        store: Where the workers are known.
        settings: Those of the app.
        tasks: Of each its name, its id, how often it has died, and the last time.
    """
    died = [task for task in tasks if task[2]]
    # They run again, maybe here, and may kill the next process before a thread gets to it.
    record(store, settings, *(_entry(settings, *task) for task in died), at_once=True)
    for name, task_id, deaths, death in died:
        log(
            logger,
            logging.WARNING,
            "Task %s[%s]: %s, death %d of %d within %g h: it goes back to its queue and runs again",
            name,
            task_id,
            death.what,
            deaths,
            settings.poison_limit,
            settings.poison_window / 3600,
        )


def _entry(settings: Settings, name: str, task_id: str, deaths: int, death: Death) -> Entry:
    why = f"{death.what}, death {deaths} of {settings.poison_limit}"
    node = node_of(death.worker)
    return Entry(What.DIED, task_id, name, node, why, process=death.process)


def take_back(store: Store, task_id: str, worker: str, number: str) -> None:
    """A run has ended whose worker others had taken for dead: it has not died of it.

    Args:
        store: Where the workers are known.
        task_id: Of the task.
        worker: Id that the worker had.
        number: Of the claim.

    Raises:
        StoreAway: It may stay counted.
    """
    store.execute("ZREM", [f"graceful:deaths:{task_id}"], [f"{worker}/{number}"])


def condemn(
    store: Store,
    settings: Settings,
    tasks: Sequence[tuple[Kept, Death]],
    claims: Sequence[tuple[str, str]] = (),
) -> list[bool]:
    """Put tasks that have died too often into quarantine.

    Args:
        store: Where the workers are known.
        settings: Those of the app.
        tasks: With how often, and the last time; ``why`` is filled in.
        claims: Of each, worker id and number of the claim that holds its message, if there is one.

    Returns:
        Of each, whether it was done: not if the claim was gone.

    Raises:
        StoreAway: Some may have been done.
    """
    tasks = [(replace(kept, why=_why(settings, kept.deaths)), death) for kept, death in tasks]
    done = put(store, *(kept for kept, _ in tasks), claims=claims)
    condemned = [task for task, is_done in zip(tasks, done, strict=True) if is_done]
    entries: list[Entry] = []
    for kept, death in condemned:
        died = _entry(settings, kept.task, kept.id, kept.deaths, death)
        node = node_of(kept.worker)
        entries += [died, Entry(What.QUARANTINED, kept.id, kept.task, node, kept.why, at=died.at)]
    record(store, settings, *entries, at_once=True)
    for kept, _ in condemned:
        log(
            logger,
            logging.ERROR,
            "Task %s[%s], death %d of %d, goes to quarantine: %s",
            kept.task,
            kept.id,
            kept.deaths,
            settings.poison_limit,
            kept.why,
        )
    return done


def _why(settings: Settings, deaths: int) -> str:
    times = "once" if deaths == 1 else f"{deaths} times"
    return (
        f"the process that ran it died {times} within {settings.poison_window / 3600:g} h "
        f"(graceful_poison_limit = {settings.poison_limit})"
    )


# -- telling ---------------------------------------------------------------------------


def tell_untold(app: Any) -> None:
    """Tell of all tasks in quarantine of which it has not been done: batch, result, signals.

    What cannot be told, a result backend that is away for instance, is tried again by whoever
    calls this a minute later. What is of another app is left to its workers.

    Raises:
        StoreAway: The store does not answer.
    """
    store, others = find_workers_store(app), _others.setdefault(app, set())
    while store is not None:
        args = [TOLD_AT_ONCE, TELL_AGAIN, *others]
        texts = store.run("untold", [UNTOLD, QUARANTINE], args)
        events: Events = {}
        try:
            for text in texts:
                _tell_one(app, store, Kept.from_json(text), events)
        finally:  # those before the one at which the store went away are told
            _send_events(app, events)
        if len(texts) < TOLD_AT_ONCE:
            return


def _tell_one(app: Any, store: Store, kept: Kept, events: Events) -> None:
    """Tell of it here, or leave it to its own workers; events are added, by their nodes."""
    if not is_told_here(app, kept.task, vars(kept)):
        _others.setdefault(app, set()).add(kept.id)
        store.execute("ZADD", [UNTOLD], ["XX", 0, kept.id])
        log(
            logger,
            logging.WARNING,
            "%s[%s] is in quarantine, and is of an app with other results (%s): that is "
            "told by its own workers",
            kept.task,
            kept.id,
            kept.app or "?",
        )
        return
    try:
        with fork_gate:  # of all times, a pool forks when a child has died
            events.setdefault(node_of(kept.worker), []).extend(_tell(app, kept))
    except Exception as exc:
        logger.error(
            "Could not tell that %s[%s] is in quarantine: %s. Tried again in %d s",
            kept.task,
            kept.id,
            describe(exc),
            TELL_AGAIN,
            exc_info=True,
        )
    else:
        store.execute("ZREM", [UNTOLD], [kept.id])


def _tell(app: Any, kept: Kept) -> list[tuple[str, dict[str, Any]]]:
    """Tell all but listeners; what there is to tell them."""
    publish_all(app, has_failed(app, fields_of(kept.to_message())))
    request = _request_of(app, kept)
    task, context = request.task, request._context
    exc: Exception = NotRegistered(kept.task)
    if kept.deaths:
        exc = PoisonedTask(f"{kept.task}[{kept.id}] is in quarantine: {kept.why}", kept.deaths)
    try:
        raise exc
    except Exception:
        einfo = ExceptionInfo()
    task.backend.mark_as_failure(kept.id, exc, request=context, store_result=request.store_errors)
    told = {"sender": task, "task_id": kept.id, "exception": exc}
    told.update(args=request.args, kwargs=request.kwargs)
    task.request_stack.push(context)
    try:
        task.on_failure(exc, kept.id, request.args, request.kwargs, einfo)
        celery_signals.task_failure.send(traceback=exc.__traceback__, einfo=einfo, **told)
    except Exception:
        logger.exception("on_failure of %s[%s] raised", kept.task, kept.id)
    try:  # where locks are freed
        task.after_return(FAILURE, exc, kept.id, request.args, request.kwargs, einfo)
    except Exception:
        logger.exception("after_return of %s[%s] raised", kept.task, kept.id)
    finally:
        task.request_stack.pop()
    close_dead(app, kept.task, kept.id, request.request_dict)
    signals.task_quarantined.send(headers=request.request_dict, **told)
    if not task.send_events:
        return []
    return [
        ("task-failed", {"uuid": kept.id, "exception": repr(exc), "traceback": ""}),
        # Behind it: a failure outranks a state that others do not know.
        ("task-quarantined", {"uuid": kept.id, "reason": kept.why, "deaths": kept.deaths}),
    ]


def _request_of(app: Any, kept: Kept) -> Any:
    """The task's request, as a worker would have made it; also of a task not known here."""
    message = kept.to_message()
    message.accept = prepare_accept_content(app.conf.accept_content)
    task = app.tasks.get(kept.task)
    if task is None:
        task = type("UnknownTask", (app.Task,), {"name": kept.task})()
    options = {"app": app, "task": task, "hostname": node_of(kept.worker)}
    if "task" in message.headers:
        return Request(message, **options)
    body, headers, decoded, utc = proto1_to_proto2(message, message.decode())
    return Request(message, body=body, headers=headers, decoded=decoded, utc=utc, **options)


def _send_events(app: Any, events: Mapping[str, Sequence[tuple[str, dict[str, Any]]]]) -> None:
    """Send the events of nodes, over one connection."""
    if not any(events.values()):
        return
    try:
        broker = app.connection_for_write()
        with fork_gate, bounded_connection(broker, EVENT_TIMEOUT) as connection:
            for node, some in events.items():
                send_events(connection, app, node, some)
    except Exception as exc:  # events may be lost
        logger.warning("Could not send the events of what is in quarantine: %s", describe(exc))
