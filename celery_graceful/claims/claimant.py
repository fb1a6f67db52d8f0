"""Who claims: the identity under which a worker takes messages from Redis."""

from __future__ import annotations

from collections.abc import Callable

from celery_graceful.system import native

__all__ = [
    "FALLEN",
    "WORKERS",
    "Claimant",
    "begun_key",
    "bell_key",
    "claims_key",
    "lease_key",
    "node_of",
    "tombstone_key",
]

#: Key of the workers that may claim; see ``lease``.
WORKERS = "graceful:workers"

#: Key of those that were taken for dead, until what they held is rescued.
FALLEN = "graceful:fallen"


def bell_key(queue: str) -> str:
    """Key of what idle workers of a queue wait on."""
    return f"graceful:bell:{queue}"


def lease_key(worker: str) -> str:
    """Key of a worker's lease."""
    return f"graceful:lease:{worker}"


def claims_key(worker: str) -> str:
    """Key of what a worker claims."""
    return f"graceful:claims:{worker}"


def begun_key(worker: str) -> str:
    """Key of the numbers of those that have begun."""
    return f"graceful:begun:{worker}"


def tombstone_key(worker: str) -> str:
    """Key that says, for a week, that a worker was taken for dead."""
    return f"graceful:tombstone:{worker}"


def node_of(worker: str) -> str:
    """The name of a worker's node, as people and Celery's events know it."""
    return worker.rpartition(":")[0] or worker


class Claimant:
    """One identity of a worker. It is new at each boot, and after a lost lease.

    Args:
        worker: The worker's id.
        on_refused: Called when Redis refuses a claim, since the worker has not registered yet
            or is taken for dead. It must not block.
    """

    def __init__(self, worker: str, on_refused: Callable[[], None] = lambda: None) -> None:
        self.worker = worker
        #: In which it has registered: it knows claims of others to be lost with their data.
        self.epoch = ""
        #: The first of these.
        self.first_epoch = ""
        self.on_refused = on_refused
        self._next = 1
        self._lock = native.Lock()

    def enter(self, epoch: str) -> None:
        """It has registered in that epoch of the server's data."""
        self.epoch = epoch
        self.first_epoch = self.first_epoch or epoch

    def take_numbers(self, count: int) -> int:
        """The first of ``count`` numbers for claims; later ones are higher."""
        with self._lock:
            first = self._next
            self._next += count
        return first
