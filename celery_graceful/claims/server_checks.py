"""What is wrong with a Redis that claims are to be safe on: said at start, and by the doctor."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from celery.utils.log import get_logger

from celery_graceful.claims.lease_validity import server_info
from celery_graceful.store.store import Store, StoreAway
from celery_graceful.system.log_thread import log

__all__ = [
    "Dropping",
    "check_server",
    "may_be_dropped",
    "says_nothing",
    "too_old",
]

logger = get_logger(__name__)

#: Redis of which we need RPOP with a count, among others.
OLDEST = (6, 2)


class Dropping(NamedTuple):
    """A server that may drop keys.

    Attributes:
        policy: Its ``maxmemory-policy``.
    """

    policy: str

    @property
    def only_volatile(self) -> bool:
        """Whether it keeps what has no time to live: queues and claims."""
        return self.policy.startswith("volatile")

    @property
    def what(self) -> str:
        """Of ours, beside leases."""
        return "checkpoints" if self.only_volatile else "queues, claims and checkpoints"


def says_nothing(server: Mapping[str, Any]) -> bool:
    """Whether it must not be asked for the section ``server`` of INFO."""
    return not server


def too_old(server: Mapping[str, Any]) -> str | None:
    """The version of a server that is too old."""
    version = str(server.get("redis_version", ""))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return version if "valkey_version" not in server and numbers and numbers < OLDEST else None


def may_be_dropped(memory: Mapping[str, Any]) -> Dropping | None:
    """What a server drops when its memory is full; ``None``: nothing."""
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    return None if policy == "noeviction" else Dropping(policy)


def check_server(store: Store) -> None:
    """Say in the log what is wrong with a server that claims are to be safe on."""
    try:
        server, memory = server_info(store, "server"), server_info(store, "memory")
    except StoreAway:
        return
    if says_nothing(server):
        log(
            logger,
            logging.WARNING,
            "Redis does not say which server it is, nor for how long it has been up: for a lease's "
            "time after its start, and longer after each lost connection, this worker takes nobody "
            "for dead. Mend: ACL SETUSER %s +info",
            store.user,
        )
    version, dropping = too_old(server), may_be_dropped(memory)
    if version:
        log(logger, logging.ERROR, "Redis %s is too old: claims need 6.2 or later", version)
    if dropping is not None:
        log(
            logger,
            logging.WARNING,
            "Redis has maxmemory-policy %s and may drop keys when its memory is full, leases and "
            "%s: set noeviction",
            dropping.policy,
            dropping.what,
        )
