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
``graceful:worker:<worker>``
    What has to stay known of a worker until then, as JSON: how many tasks it ran at once.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
import traceback
from collections.abc import Callable
from typing import Any

from celery.utils.log import get_logger

from celery_graceful import native
from celery_graceful.claimant import WORKERS, Claimant, claims_key, lease_key
from celery_graceful.log_thread import log
from celery_graceful.settings import Settings
from celery_graceful.store import Store, StoreAway

__all__ = [
    "FALLEN",
    "Lease",
    "about_key",
    "check_server",
    "dead_workers",
    "seconds_to_trust",
]

logger = get_logger(__name__)

FALLEN = "graceful:fallen"

#: Redis of which we need RPOP with a count, among others.
OLDEST = (6, 2)

#: Seconds until a worker that could not register tries again.
AGAIN = 0.2


def about_key(worker: str) -> str:
    """Key of what stays known of a worker."""
    return f"graceful:worker:{worker}"


def dead_workers(store: Store) -> list[str]:
    """Workers that have registered, and whose lease ran out.

    Raises:
        StoreAway: Redis did not answer.
    """
    workers = sorted(store.execute("SMEMBERS", [WORKERS]))
    beats = store.execute("MGET", [lease_key(w) for w in workers]) if workers else []
    return [worker for worker, beat in zip(workers, beats, strict=True) if beat is None]


def seconds_to_trust(store: Store, ttl: float) -> float:
    """Seconds for which leases that ran out say nothing: Redis was away, their workers live.

    Raises:
        StoreAway: Redis did not answer.
    """
    up = float(server_info(store, "server").get("uptime_in_seconds", ttl + 1))
    return max(0.0, ttl + 1 - up)


def server_info(store: Store, section: str) -> dict[str, Any]:
    """A section of what the server says of itself; empty where it says nothing.

    Raises:
        StoreAway: It did not answer, or must not be asked.
    """
    info = store.execute("INFO", [], [section])
    if isinstance(info, str):
        lines = (line.partition(":") for line in info.splitlines())
        info = {name: value for name, _, value in lines}
    return dict(info or {})


def check_server(store: Store) -> None:
    """Say in the log what is wrong with a server that claims are to be safe on."""
    try:
        server, memory = server_info(store, "server"), server_info(store, "memory")
    except StoreAway:
        return  # a managed one may not let us ask
    version = str(server.get("redis_version", ""))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if "valkey_version" not in server and numbers and numbers < OLDEST:
        log(logger, logging.ERROR, "Redis %s is too old: claims need 6.2 or later", version)
    policy = memory.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        log(
            logger,
            logging.WARNING,
            "Redis has maxmemory-policy %s and may drop keys when its memory is full, leases and "
            "%s: set noeviction",
            policy,
            "checkpoints" if policy.startswith("volatile") else "queues, claims and checkpoints",
        )


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
        rescued: bool = True,
    ) -> None:
        self.store = store
        self.settings = settings
        self.node = node
        self.held_until = 0.0
        #: What has to stay known of the worker when its lease has run out.
        self.about: dict[str, Any] = {}
        self._known = ""
        self._heartbeat, self._on_lost, self._on_held = heartbeat, on_lost, on_held
        self._rescued = rescued
        self._bell, self._left = native.Doorbell(), native.Doorbell()
        self._leaving = self._registered = False
        self.identity = self._new_identity()

    def _new_identity(self) -> Claimant:
        self._registered = False
        return Claimant(f"{self.node}:{secrets.token_hex(8)}", self._bell.ring)

    @property
    def held(self) -> bool:
        """Whether it is surely held, as far as this process can know."""
        return time.monotonic() < self.held_until

    def start(self) -> None:
        """Keep its identity alive from now on."""
        native.start_thread(self._keep, "graceful-lease")

    def leave(self, seconds: float) -> None:
        """The worker ends: give it up, in up to ``seconds``. What is still claimed is rescued."""
        self._leaving = True
        self._bell.ring()
        self._left.wait(seconds)

    # -- in its thread ---------------------------------------------------------------

    def _keep(self) -> None:
        checked = False
        while not self._leaving:
            pause = self.settings.heartbeat_interval
            began = time.monotonic()
            try:
                if self._renew():
                    self.held_until = began + self.settings.lease_ttl
                    self._on_held(self.held_until)
                    if not checked:
                        checked = True
                        check_server(self.store)
                        if not self._rescued:
                            self._clear_away()
                else:
                    self._lost()
                    pause = 0.0
            except StoreAway:
                pause = min(pause, AGAIN)
            except Exception:
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
        timeout = max(0.1, min(1.0, self.settings.lease_ttl / 4))
        about = json.dumps(self.about)
        if self._registered:
            command = (beat, "XX", "PX", ttl)
            keys = [lease_key(worker)]
            if self.store.execute("SET", keys, command, timeout=timeout, insist=True):
                if about != self._known:
                    # Before the lease runs out, and never of a worker that was rescued.
                    keys = [about_key(worker)]
                    self.store.execute("SET", keys, (about, "XX"), timeout=timeout, insist=True)
                    self._known = about
                return True
        first = 0 if self._registered and self._rescued else 1
        keys = [WORKERS, lease_key(worker), about_key(worker)]
        args = [worker, beat, ttl, first, about]
        known = self.store.run("register", keys, args, timeout=timeout, insist=True)
        self._registered, self._known = bool(known), about
        return self._registered

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
        if seconds_to_trust(self.store, self.settings.lease_ttl):
            return
        for worker in dead_workers(self.store):
            keys = [WORKERS, lease_key(worker), FALLEN]
            claimed = self.store.execute("EXISTS", [claims_key(worker)])
            if not claimed and self.store.run("fall", keys, [worker]):
                self.store.execute("SREM", [FALLEN], [worker])
                self.store.execute("DEL", [about_key(worker)])

    def _leave(self) -> None:
        worker = self.identity.worker
        keys = [WORKERS, lease_key(worker), FALLEN, claims_key(worker), about_key(worker)]
        try:
            self.store.run("leave", keys, [worker], insist=True)
        except StoreAway:
            log(logger, logging.WARNING, "Could not give the lease up: it runs out by itself")
        self._left.ring()
