"""Where a message of a member may be: all places of one broker, looked through for some members.

What stands in one of them is not missing: it waits in a queue, for its ETA, a retry or a worker
that knows its task, or a worker holds it. Who looks twice sees also what moved the first time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from celery_graceful.batches.holders import ask_holders
from celery_graceful.batches.queues import AGE, Queues
from celery_graceful.batches.redis_scan import TooLong, Walk
from celery_graceful.batches.search_state import Doubt, Sought
from celery_graceful.claims.claimant import FALLEN, WORKERS, claims_key
from celery_graceful.claims.lease import broker_digest
from celery_graceful.claims.queue_lists import lists_of, queue_lists
from celery_graceful.store.app_stores import (
    broker_store,
    broker_stores,
    find_store,
    find_workers_store,
    is_kombus_redis,
)
from celery_graceful.store.store import Store, StoreAway, StoreForbidden

__all__ = ["Whereabouts", "broker_of", "not_found", "whereabouts_of"]

logger = logging.getLogger(__name__)

#: What the user of a Redis needs who looks, beside its queues; as ``ACL SETUSER`` takes it.
RIGHTS = (
    "~graceful:workers ~graceful:fallen ~graceful:lease:* ~graceful:worker:* ~graceful:aboard:* "
    "~graceful:claims:* ~graceful:waiting:* ~unacked* +@read +evalsha"
)

FORBIDDEN = (
    "Batch %s: Redis does not let its user look where members are, so those that may have been "
    "sent already are sent again: %s. Mend: ACL SETUSER <user> %s (docs/reliable-fetch.md, Rights)"
)

#: When it is known what is in a list that was too long to be looked through.
SHORTER = "run it again when it is shorter"

#: What was said of that.
_refused: set[str] = set()


class Whereabouts(Protocol):
    """Where messages of one app can be."""

    def look(self, sought: Sought, *, again: bool) -> None:
        """Find members.

        Args:
            sought: What is looked for; what is found is taken out, and doubts are noted.
            again: They were not found before: now look everywhere.

        Raises:
            StoreAway: Redis did not answer.
        """


class _OnRedis:
    """One Redis that is the broker, or one of several.

    Args:
        app: The Celery app.
        store: The Redis.
        rest: See ``Walk``.
    """

    def __init__(self, app: Any, store: Store, rest: Callable[[float], object]) -> None:
        self.store = store
        self._rest = rest
        options = app.conf.broker_transport_options or {}
        #: Lists in which something was found, or may well be.
        self._known = {key: None for name in app.amqp.queues for key in lists_of(app, name)}
        self._hashes = [
            options.get("unacked_key", "unacked"),
            "graceful:waiting:messages",
            f"graceful:waiting:{broker_digest(app)}:messages",
        ]

    def look(self, sought: Sought, *, again: bool) -> None:
        walk = Walk(self.store, self._rest)
        for turn in ("before", "after"):
            for key in self._claims():
                self._find(walk, sought, key, "hash")
            for key in self._hashes:
                self._find(walk, sought, key, "hash")
            if turn == "after":  # a claim may have gone back to its queue, and been claimed again
                break
            refused: StoreForbidden | None = None
            for key in queue_lists(self.store) if again else list(self._known):
                if not sought:
                    break
                try:
                    if self._find(walk, sought, key, "list"):
                        self._known[key] = None
                except TooLong as exc:
                    for batch, _ in sought:
                        sought.doubt(batch, Doubt(str(exc), AGE, SHORTER))
                except StoreForbidden as exc:  # it may be of another app, and no queue
                    refused = exc
            if refused is not None and sought:
                raise refused

    def _find(self, walk: Walk, sought: Sought, key: str, kind: str) -> int:
        count = 0
        for memberships in walk.messages_of(key, kind) if sought else ():
            count += sought.found(memberships)
            if not sought:
                break
        return count

    def _claims(self) -> list[str]:
        workers = {
            worker
            for key in (WORKERS, FALLEN)
            for worker in self.store.execute("SMEMBERS", [key], insist=True)
        }
        return [claims_key(worker) for worker in sorted(workers)]


class _Everywhere:
    """All brokers of an app, and its living workers.

    Args:
        brokers: Its servers.
        workers: Where its workers are known, and by which broker.
    """

    def __init__(
        self, brokers: Iterable[Whereabouts], workers: Iterable[tuple[Store, str]]
    ) -> None:
        self._brokers, self._workers = list(brokers), list(workers)

    def look(self, sought: Sought, *, again: bool) -> None:
        self._ask(sought)
        for broker in self._brokers if sought else ():
            broker.look(sought, again=again)
        self._ask(sought)

    def _ask(self, sought: Sought) -> None:
        for store, broker in self._workers if sought else ():
            ask_holders(store, sought, broker)


def _can_be_read(app: Any) -> bool:
    return is_kombus_redis(app.connection_for_read().transport)


class _OutOfTime(Exception):
    """It takes too long to look through it all."""


def not_found(app: Any, batch: str, members: Iterable[str], patience: float) -> set[str]:
    """Which members of a batch are found nowhere: at one look, so they may be there all the same.

    Args:
        app: The Celery app.
        batch: The batch.
        members: Those.
        patience: Seconds that it may take; nobody is found else.
    """
    left, end = set(members), time.monotonic() + patience
    if not left or not _can_be_read(app):
        return left

    def rest(seconds: float) -> None:
        if time.monotonic() > end:
            raise _OutOfTime
        time.sleep(seconds)

    sought = Sought({batch: left})
    try:
        whereabouts_of(app, rest, lambda *_: ()).look(sought, again=True)
    except StoreForbidden as exc:
        if str(exc) not in _refused:
            _refused.add(str(exc))
            logger.warning(FORBIDDEN, batch, exc, RIGHTS)
    except (_OutOfTime, StoreAway) as exc:
        logger.debug("Batch %s is not looked for: %s", batch, exc)
        return left
    return dict(sought).get(batch, set())


def broker_of(app: Any) -> str:
    """Tells brokers apart that share a store; empty where the store is the broker itself."""
    store = find_store(app)
    if store is not None and store is broker_store(app):
        return ""
    prefix = (app.conf.broker_transport_options or {}).get("global_keyprefix") or ""
    return f"{broker_digest(app)}{prefix}"


def whereabouts_of(
    app: Any,
    rest: Callable[[float], object],
    routes: Callable[[str, set[str]], Iterable[str]],
) -> Whereabouts:
    """Where messages of an app can be.

    Args:
        app: The Celery app.
        rest: Waits for so many seconds, so that a server is left alone now and then.
        routes: The queues that members of a batch are sent to.
    """
    if _can_be_read(app):
        stores = broker_stores(app)
        return _Everywhere(
            [_OnRedis(app, store, rest) for store in stores],
            [(store, broker) for store in stores for broker in ("", broker_digest(app))],
        )
    store = find_workers_store(app)
    workers = [] if store is None else [(store, broker_digest(app))]
    return _Everywhere([Queues(app, store, routes)], workers)
