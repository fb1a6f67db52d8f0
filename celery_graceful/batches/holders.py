"""What living workers hold of batches, where no claim and no queue says so.

A message of RabbitMQ cannot be seen, nor one that was acknowledged when its task began. So each
worker says which members it holds, with its heartbeat; what it holds for less than the time between
two of them is mostly not said at all. Key, after the prefix of where workers are known:

``graceful:aboard:<worker>``
    Set: ``<batch>/<member>`` of what the worker holds. Expires after a few leases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from celery_graceful.batches.search_state import Sought
from celery_graceful.claims.lease import live_workers
from celery_graceful.store.store import Store

__all__ = ["Holder", "ask_holders"]

#: Members in one command.
CHUNK = 500

#: Leases for which it is kept.
KEPT = 10


def _key(worker: str) -> str:
    return f"graceful:aboard:{worker}"


class Holder:
    """What one worker says.

    Args:
        store: Where the workers are known.
        held: What it holds now.
        lease_ttl: Seconds of a lease.
    """

    def __init__(self, store: Store, held: Callable[[], Iterable[str]], lease_ttl: float) -> None:
        self.store = store
        self._held = held
        self._ttl = int(lease_ttl * KEPT * 1000)
        self._worker = ""
        self._said: set[str] = set()

    def say(self, worker: str) -> None:
        """Say what has changed. With a heartbeat; costs nothing where nothing is held.

        Args:
            worker: Its id.

        Raises:
            StoreAway: Some of it may have been said.
        """
        held = set(self._held())
        if worker != self._worker:
            self._worker, self._said = worker, set()
        if not held and not self._said:
            return
        key, said, self._said = [_key(worker)], self._said, set()
        for command, members in (("SADD", held - said), ("SREM", said - held)):
            for chunk in _chunks(sorted(members)):
                self.store.execute(command, key, chunk)
        if held and not self.store.execute("PEXPIRE", key, [self._ttl]) and held & said:
            for chunk in _chunks(sorted(held)):  # Redis has lost it
                self.store.execute("SADD", key, chunk)
            self.store.execute("PEXPIRE", key, [self._ttl])
        self._said = held


def ask_holders(store: Store, sought: Sought, broker: str = "") -> None:
    """Find what living workers hold.

    Args:
        store: Where they are known.
        sought: What is looked for.
        broker: As for ``live_workers``.

    Raises:
        StoreAway: Redis did not answer.
    """
    for worker in live_workers(store, broker):
        key = [_key(worker)]
        if not sought or not store.execute("EXISTS", key, insist=True):
            continue
        for batch, members in sought:
            for chunk in _chunks([f"{batch}/{member}" for member in members]):
                held = store.execute("SMISMEMBER", key, chunk, insist=True)
                sought.found(m for m, is_held in zip(chunk, held, strict=True) if is_held)


def _chunks(members: Sequence[str]) -> Iterable[Sequence[str]]:
    return (members[start : start + CHUNK] for start in range(0, len(members), CHUNK))
