"""The servers that workers use: what they say of themselves, each asked with a time-out."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

from celery_graceful.claims.lease_validity import server_info
from celery_graceful.store.rights import why_no_writes
from celery_graceful.store.scan import pairs_of
from celery_graceful.store.store import Store, StoreAway, StoreRefused

__all__ = ["RedisServer"]

#: How often the way to a server is measured.
PINGS = 10


class RedisServer:
    """A Redis.

    Args:
        store: How it is asked.
        is_broker: Workers may consume from it.
        is_results: It is asked for Celery's results, and keeps nothing of ours by this store.
    """

    def __init__(self, store: Store, *, is_broker: bool = False, is_results: bool = False) -> None:
        self.store = store
        self.is_broker, self.is_results = is_broker, is_results
        self._info: dict[str, dict[str, Any]] = {}
        try:
            self.name = f"Redis at {store.address} ({store.source})"
        except Exception:  # a URL that cannot be used, or a Sentinel that is away
            self.name = f"Redis ({store.source})"

    def away(self) -> str | None:
        """Why it cannot be asked; ``None`` if it can."""
        try:
            self.store.execute("PING", [], insist=True, quiet=True)
        except StoreRefused as exc:
            said = self.bare(exc)
            return said if "NOAUTH" in said or "WRONGPASS" in said else None
        except StoreAway as exc:
            return self.bare(exc)
        return None

    def bare(self, exc: StoreAway) -> str:
        """What was raised, without where it was: its name, which stands beside it, has that."""
        return str(exc).removeprefix(f"{self.store.source}: ")

    def info(self, section: str) -> dict[str, Any]:
        """A section of ``INFO``; empty where it must not be asked."""
        if section not in self._info:
            self._info[section] = server_info(self.store, section)
        return self._info[section]

    def setting(self, name: str) -> str | None:
        """A directive of its configuration; ``None`` where it must not be asked."""
        try:
            found = self.store.execute("CONFIG", [], ["GET", name], quiet=True)
        except StoreRefused:  # managed ones have no such command
            return None
        value = pairs_of(found).get(name)
        return None if value is None else str(value)

    @cached_property
    def no_writes(self) -> StoreRefused | None:
        """Why it takes no writes; ``None`` if it does."""
        return why_no_writes(self.store)

    @cached_property
    def round_trip(self) -> float:
        """Seconds that a question takes at the least: what is slow now and then is load."""
        taken = []
        for _ in range(PINGS):
            began = time.monotonic()
            self.store.execute("PING", [], quiet=True)
            taken.append(time.monotonic() - began)
        return min(taken)
