"""From when on a lease that ran out says that its worker is dead.

Not on a server that has not heard the workers for as long as a lease lives: one that has just
started, or was out of reach, or stands behind the name of another one since a failover. There
the living look dead, for their heartbeats went elsewhere. Keys:

``graceful:epoch``
    Hash. ``id``: of the data. Who finds another one than before, or none, knows that Redis has
    lost what it knew. ``server``: which process, of which replication, holds them; empty where
    it does not say. ``trust``: from when on leases say something, milliseconds of its clock.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from celery_graceful.store.store import Store, StoreRefused
from celery_graceful.system import native

__all__ = ["EPOCH", "LeaseValidity", "server_info"]

EPOCH = "graceful:epoch"

#: Seconds for which a former master may still take heartbeats: Sentinel leaves it writable for
#: some ten.
FOLLOW = 15.0


def server_info(store: Store, section: str) -> dict[str, Any]:
    """A section of what the server says of itself; empty where it must not be asked.

    Raises:
        StoreAway: It did not answer.
    """
    try:
        info = store.execute("INFO", [], [section], quiet=True)
    except StoreRefused:  # INFO is among what many users may not do
        return {}
    if isinstance(info, str):
        lines = (line.partition(":") for line in info.splitlines())
        info = {name: value for name, _, value in lines}
    return dict(info or {})


class LeaseValidity:
    """What one process may conclude from leases.

    Args:
        store: Where they are kept.
        ttl: Seconds that a lease lives.
        by_hand: Somebody asks once, who has seen to it that the server is as it was.
        on_another: Called with the address of the server that stood behind the name before,
            when another one does.
    """

    def __init__(
        self,
        store: Store,
        ttl: float,
        *,
        by_hand: bool = False,
        on_another: Callable[[Any], None] = lambda peer: None,
    ) -> None:
        self.store = store
        self.ttl = ttl
        #: Which server it is; empty where it does not say.
        self.server = ""
        self._by_hand, self._on_another = by_hand, on_another
        #: At which connection it was met, and until when it is not trusted.
        self._met, self._lost = 0, 0
        self._peer: Any = None
        self._until = 0.0
        self._lock = native.Lock()

    def seconds(self) -> float:
        """Seconds for which leases that ran out say nothing.

        Raises:
            StoreAway: Redis did not answer.
        """
        self.meet()
        return max(0.0, self._until - time.monotonic())

    def meet(self) -> None:
        """See who answers, if a connection was made since the last time.

        Raises:
            StoreAway: Redis did not answer.
        """
        while self._met != self.store.connections or not self._met:
            before = self.store.connections
            server, up = self._ask()
            # Restarted, and nobody else takes heartbeats; a replica may be as young, elsewhere.
            moved = self._peer is not None and self.store.peer != self._peer
            young = up is not None and up < FOLLOW and not moved
            first = max(0.0, self.ttl + 1 - up) if up is not None else 0.0
            another = first if young else self.ttl + FOLLOW
            args = [secrets.token_hex(8), server, *(int(s * 1000) for s in (first, another))]
            wait = self.store.run("meet", [EPOCH], [*args, self.server], insist=True) / 1000
            if not server and not self._by_hand:  # after a lost connection it may be another one
                if self.store.reconnections != self._lost:
                    wait = max(wait, self.ttl + FOLLOW)
                elif not self._met:
                    wait = max(wait, self.ttl + 1)
            known, self.server, self._lost = self.server, server, self.store.reconnections
            self._distrust(wait)
            peer, self._peer = self._peer, self.store.peer
            if known and server and known != server and peer != self._peer:
                self._on_another(peer)
            if before in (0, self.store.connections):
                self._met = self.store.connections

    def meet_again(self) -> None:
        """What the server knew is gone: meet it anew."""
        self._met = 0

    def was_away(self) -> None:
        """Redis was out of reach, for the others perhaps as well: they get a lease's time."""
        self._distrust(self.ttl)

    def _distrust(self, seconds: float) -> None:
        with self._lock:
            self._until = max(self._until, time.monotonic() + seconds)

    def _ask(self) -> tuple[str, float | None]:
        """Which server it is, and for how many seconds it has been up."""
        server = server_info(self.store, "server")
        replication = server_info(self.store, "replication")
        names = (server.get("run_id"), replication.get("master_replid"))
        up = server.get("uptime_in_seconds")
        return ":".join(str(name) for name in names if name), None if up is None else float(up)
