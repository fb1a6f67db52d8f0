"""How an interrupt reaches a running task, and how one is given up: one file a pool."""

from __future__ import annotations

import sys
from typing import Any

from celery_graceful import native
from celery_graceful.pools.base import Adapter

__all__ = ["Adapter", "adapter_for"]


def adapter_for(worker: Any, ledger: Any) -> Adapter:
    """The adapter for the pool of ``worker``: Celery's own, or one derived from it."""
    cls: type[Adapter]
    if _is(worker.pool_cls, "prefork"):
        from celery_graceful.pools.prefork import PreforkAdapter as cls
    elif _is(worker.pool_cls, "thread"):
        from celery_graceful.pools.threads import ThreadsAdapter as cls
    elif _is(worker.pool_cls, "gevent") or _is(worker.pool_cls, "eventlet"):
        if native.is_green():
            from celery_graceful.pools.green import GreenAdapter as cls
        else:
            from celery_graceful.pools.unknown import UnpatchedAdapter as cls
    elif _is(worker.pool_cls, "solo"):
        from celery_graceful.pools.solo import SoloAdapter as cls
    else:
        from celery_graceful.pools.unknown import UnknownAdapter as cls
    return cls(worker, ledger)


def _is(pool_cls: Any, name: str) -> bool:
    # Whoever derives from it has imported it; not all can be imported everywhere.
    celerys = getattr(sys.modules.get(f"celery.concurrency.{name}"), "TaskPool", ())
    return isinstance(pool_cls, type) and issubclass(pool_cls, celerys)
