"""How an interrupt reaches a running task, and how one is given up: one file a pool."""

from __future__ import annotations

from typing import Any

from celery_graceful.pools.base import Adapter

__all__ = ["Adapter", "adapter_for"]


def adapter_for(worker: Any, ledger: Any) -> Adapter:
    """The adapter for the pool of ``worker``."""
    name = worker.pool_cls.__module__.rpartition(".")[2]
    cls: type[Adapter]
    if name == "prefork":
        from celery_graceful.pools.prefork import PreforkAdapter as cls
    elif name == "thread":
        from celery_graceful.pools.threads import ThreadsAdapter as cls
    elif name in ("gevent", "eventlet"):
        from celery_graceful.pools.green import GreenAdapter as cls
    elif name == "solo":
        from celery_graceful.pools.solo import SoloAdapter as cls
    else:
        from celery_graceful.pools.base import InProcessAdapter as cls
    return cls(worker, ledger)
