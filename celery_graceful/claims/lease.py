"""The lease: how a worker shows that it lives, for as long as it holds anything.

A time, kept by the Redis server's clock. A real thread renews it with one command, whatever the
event loop and the main thread do, through the whole drain; it is given up last. Keys, each after
the key prefix of the connection:

``graceful:lease:<worker>``
    The heartbeat, as JSON, with ``graceful_lease_ttl`` to live.
``graceful:workers``
    Set of the workers that have registered and were not taken for dead: who may claim.
``graceful:fallen``
    Set of those who were; their claims are being rescued.
``graceful:tombstone:<worker>``
    Says so for a week. Who finds neither its name nor this has not been taken for dead: Redis
    has lost its data (see ``lease_validity`` for their epoch). Then it registers again with its
    claims.
``graceful:worker:<worker>``
    What has to stay known of a worker until then, as JSON: which server has heard it last, of which
    app it is, and from which broker its messages are, where that is not this server; and that it
    was told to stop.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.claims.claimant import (
    FALLEN,
    WORKERS,
    Claimant,
    begun_key,
    claims_key,
    lease_key,
    tombstone_key,
)
from celery_graceful.claims.lease_validity import EPOCH, LeaseValidity
from celery_graceful.claims.server_checks import check_server
from celery_graceful.settings import Settings
from celery_graceful.store.store import Store, StoreAway
from celery_graceful.system import native
from celery_graceful.system.log_thread import log
from celery_graceful.system.portions import portions

__all__ = [
    "Lease",
    "about_key",
    "broker_digest",
    "dead_workers",
    "live_workers",
    "registered",
    "take_for_dead",
]

logger = get_logger(__name__)

#: Seconds until a worker that could not register tries again.
AGAIN = 0.2

#: Milliseconds for which a tombstone stands: longer than anything sleeps that wakes up again.
TOMBSTONE = 7 * 86_400_000


def about_key(worker: str) -> str:
    """Key of what stays known of a worker."""
    return f"graceful:worker:{worker}"


def registered(store: Store) -> list[tuple[str, str | None]]:
    """Workers that have registered, and what their leases say; ``None`` where one ran out.

    Raises:
        StoreAway: Redis did not answer.
    """
    workers = sorted(store.execute("SMEMBERS", [WORKERS]))
    beats = store.execute("MGET", [lease_key(w) for w in workers]) if workers else []
    return list(zip(workers, beats, strict=True))


def dead_workers(store: Store) -> list[str]:
    """Workers that have registered, and whose lease ran out. Raises as ``registered``."""
    return [worker for worker, beat in registered(store) if beat is None]


def broker_digest(app: Any) -> str:
    """Tells brokers that share a store apart: by hosts and virtual host, not by who logs in."""
    from kombu.utils.url import parse_url

    connection = app.connection_for_read()
    urls = [parse_url(url) for url in connection.alt or [connection.as_uri()]]
    hosts = sorted(f"{url.get('hostname')}:{url.get('port')}" for url in urls)
    text = " ".join([*hosts, str(connection.virtual_host)])
    return hashlib.sha1(text.encode()).hexdigest()[:12]


def live_workers(store: Store, broker: str = "") -> list[str]:
    """Workers whose lease runs, and that look after the same messages.

    Args:
        store: Where they are known.
        broker: Which broker they consume from, where the store is none: some may share it.

    Raises:
        StoreAway: Redis did not answer.
    """
    workers = sorted(store.execute("SMEMBERS", [WORKERS]))
    if not workers:
        return []
    beats = store.execute("MGET", [lease_key(w) for w in workers])
    about = store.execute("MGET", [about_key(w) for w in workers])
    return [
        worker
        for worker, beat, text in zip(workers, beats, about, strict=True)
        if beat is not None and json.loads(text or "{}").get("broker", broker) == broker
    ]


def take_for_dead(
    store: Store, lease_validity: LeaseValidity, worker: str, own: str | None = None
) -> bool | None:
    """Take a worker for dead whose lease has run out.

    Args:
        store: Where leases are kept.
        lease_validity: What leases say there.
        worker: Whom.
        own: The worker that asks; one of whom the server has not heard cannot judge.

    Returns:
        Whether it is dead from now on; ``None`` where nobody can say so yet.

    Raises:
        StoreAway: Redis did not answer.
    """
    keys = [WORKERS, lease_key(worker), FALLEN, tombstone_key(worker), EPOCH]
    keys += [lease_key(own)] if own is not None else []
    answer = int(store.run("fall", keys, [worker, TOMBSTONE, lease_validity.server]))
    return None if answer < 0 else bool(answer)


#: What ``register`` answers to who has to register with its claims, and what is said then.
_AGAIN = ("gone", "older")
_GONE = (
    "Redis has lost its data (a flush, a restart without persistence, a failover to a replica "
    "without them)"
)
_OLDER = "Redis was started again, or another server stands in its place"

Restoring = AbstractContextManager[list[tuple[int, str]]]


class Lease:
    """The lease of one worker, under one identity after the other.

    Args:
        store: Where it is kept.
        settings: What the user set.
        node: Name of the worker's node.
        heartbeat: Makes what others read of the worker; called in the lease's thread.
        on_lost: Called there when the worker was taken for dead while it lived, with the
            identity that it had.
        on_held: Called there with the moment, on the monotonic clock, until which the lease
            is surely held.
        restoring: Called there, with worker and epoch, when Redis has lost its data: a context
            in which numbers and entries of the worker's claims are written there again.
        lease_validity: What leases say there.
        rescued: Others rescue what a dead worker holds. Not where the broker does so itself:
            there nobody takes a worker for dead, and the next one clears away what it left.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        node: str,
        *,
        heartbeat: Callable[[], dict[str, Any]],
        on_lost: Callable[[Claimant], None],
        on_held: Callable[[float], None],
        restoring: Callable[[str, str], Restoring] | None = None,
        lease_validity: LeaseValidity | None = None,
        rescued: bool = True,
    ) -> None:
        self.store = store
        self.settings = settings
        self.node = node
        self.lease_validity = lease_validity or LeaseValidity(store, settings.lease_ttl)
        self.held_until = 0.0
        #: What has to stay known of the worker when its lease has run out.
        self.about: dict[str, Any] = {}
        self._known = ""
        self._heartbeat, self._on_lost, self._on_held = heartbeat, on_lost, on_held
        self._restoring = restoring or (lambda worker, epoch: nullcontext([]))
        self._rescued = rescued
        #: How often claims have still to be restored; the second time, those that were on their
        #: way here when it was done first.
        self._to_restore = 0
        self._is_older = False
        #: Which one it has registered with, where that says so.
        self._server = ""
        self._epoch = ""
        self._bell, self._left = native.Doorbell(), native.Doorbell()
        self._leaving = self._registered = self._doubted = False
        #: Why it could not be renewed the last time; empty when it was.
        self.trouble = ""
        self.identity = self._new_identity()

    def _new_identity(self) -> Claimant:
        self._registered = False
        return Claimant(f"{self.node}:{secrets.token_hex(8)}", lambda: self._bell.ring())

    @property
    def held(self) -> bool:
        """Whether it is surely held, as far as this process can know."""
        return time.monotonic() < self.held_until

    def doubt(self) -> None:
        """A claim was refused: whatever we believe, ask whether we are registered."""
        self._doubted = True
        self._bell.ring()

    def stops(self) -> None:
        """The worker was asked to stop: say so now, and until it leaves. From any thread."""
        self.about["stops"] = True
        self._bell.ring()

    def start(self) -> None:
        """Keep its identity alive from now on."""
        native.start_thread(self._keep, "graceful-lease")

    def leave(self, seconds: float) -> None:
        """The worker ends: give it up, in up to ``seconds``. What is still claimed is rescued."""
        self._leaving = True
        self._bell.ring()
        self._left.wait(seconds)
        self._bell = self._left = native.SILENT

    # -- in its thread ---------------------------------------------------------------

    def _keep(self) -> None:
        checked = False
        while not self._leaving:
            pause = self.settings.heartbeat_interval
            began = time.monotonic()
            try:
                if self._renew():
                    self.held_until = began + self.settings.lease_ttl
                    self.trouble = ""
                    self._on_held(self.held_until)
                    if not checked:
                        checked = True
                        check_server(self.store)
                        if not self._rescued:
                            self._clear_away()
                else:
                    self._lost()
                    pause = 0.0
            except StoreAway as exc:
                self.trouble = str(exc)
                pause = min(pause, AGAIN)
                if time.monotonic() + self.settings.lease_ttl / 2 > self.held_until:
                    # As soon as it is back, nobody can be judged yet.
                    self.lease_validity.was_away()
            except Exception as exc:
                self.trouble = str(exc)
                log(
                    logger,
                    logging.CRITICAL,
                    "Could not renew the lease" + ": %s",
                    traceback.format_exc(),
                )
            self._bell.wait(max(0.0, pause - (time.monotonic() - began)))
        self._leave()

    def _renew(self) -> bool:
        worker, ttl = self.identity.worker, int(self.settings.lease_ttl * 1000)
        beat = json.dumps(self._heartbeat(), separators=(",", ":"), default=str)
        command, keys = (beat, "XX", "PX", ttl), [lease_key(worker)]
        renewed = self._registered and not self._doubted and self._ask("SET", keys, command)
        if not renewed:
            anyway = not (self._registered and self._rescued)
            state = self._register(beat, anyway)
            if state == "fallen":
                self._registered = False
                return False
            if state in _AGAIN:
                self._begin_again(state)
        if self._to_restore and not self._restore(beat):
            return False
        self.lease_validity.meet()
        known, self._server = self._server, self.lease_validity.server
        if known not in ("", self._server):
            self._doubted = True  # it may have started from an older snapshot
            return self._renew()
        self.about["server"] = self.lease_validity.server
        about = json.dumps(self.about)
        if about != self._known:
            # Before the lease runs out, and never of a worker that was rescued.
            self._ask("SET", [about_key(worker)], (about, "XX"))
            self._known = about
        return True

    def _ask(self, command: str, keys: list[str], args: tuple[Any, ...]) -> Any:
        return self.store.execute(command, keys, args, timeout=self._timeout, insist=True)

    @property
    def _timeout(self) -> float:
        return max(0.1, min(1.0, self.settings.lease_ttl / 4))

    def _register(self, beat: str, anyway: bool, claims: Sequence[tuple[int, str]] = ()) -> str:
        """Register with these claims, for the first time or ``anyway``; what came of it."""
        worker, about = self.identity.worker, json.dumps(self.about)
        keys = [WORKERS, lease_key(worker), about_key(worker), claims_key(worker)]
        keys += [FALLEN, tombstone_key(worker), EPOCH]
        args: list[Any] = [worker, beat, int(self.settings.lease_ttl * 1000), int(anyway), about]
        args += [self.identity.epoch, secrets.token_hex(8)]
        for claim in claims:
            args += claim
        state, self._epoch = self.store.run(
            "register", keys, args, timeout=self._timeout, insist=True
        )
        if state == "held":
            self._registered, self._known, self._doubted = True, about, False
            self.identity.enter(self._epoch)
        return str(state)

    def _restore(self, beat: str) -> bool:
        """Redis has lost its data: register again, with what we hold.

        False: we were taken for dead meanwhile, as somebody who sleeps between two steps may be.
        """
        anyway, state = self._to_restore == 2 and not self._is_older, ""
        with self._restoring(self.identity.worker, self._epoch) as claims:
            for portion in list(portions(claims, lambda claim: len(claim[1]))) or [()]:
                state = self._register(beat, anyway, portion)
                anyway = not self._rescued
                if state != "held":
                    break
        if state == "fallen":
            self._registered, self._to_restore = False, 0
            return False
        if state in _AGAIN:
            self._begin_again(state)
            return self._restore(beat)
        if self._to_restore == 2:
            self.lease_validity.meet_again()
            log(
                logger,
                logging.INFO if self._is_older else logging.WARNING,
                "%s: this worker has registered again, with the %d messages that it holds; its "
                "tasks go on, and their results count",
                _OLDER if self._is_older else _GONE,
                len(claims),
            )
        self._to_restore -= 1
        return True

    def _begin_again(self, state: str) -> None:
        self._to_restore, self._is_older = 2, state == "older"
        if self._is_older:  # it is registered there
            self.identity.enter(self._epoch)

    def _lost(self) -> None:
        """Others took it for dead: what it held is theirs. It goes on as somebody else."""
        old, self.identity = self.identity, self._new_identity()
        log(
            logger,
            logging.ERROR,
            "The lease ran out while this worker lived, and its claims were rescued: it goes on "
            "as %s. Was the process stopped, the machine paused, or Redis out of reach?",
            self.identity.worker,
        )
        self._on_lost(old)

    def _clear_away(self) -> None:
        """What dead workers have left; nothing of those that claim."""
        for worker in dead_workers(self.store) if not self.lease_validity.seconds() else ():
            claimed = self.store.execute("EXISTS", [claims_key(worker)])
            if not claimed and take_for_dead(self.store, self.lease_validity, worker):
                self.store.execute("SREM", [FALLEN], [worker])
                self.store.execute("DEL", [about_key(worker)])

    def _leave(self) -> None:
        worker = self.identity.worker
        keys = [WORKERS, lease_key(worker), FALLEN, claims_key(worker), about_key(worker)]
        keys.append(begun_key(worker))
        try:
            self.store.run("leave", keys, [worker], insist=True)
        except StoreAway:
            log(logger, logging.WARNING, "Could not give the lease up: it runs out by itself")
        self._left.ring()
