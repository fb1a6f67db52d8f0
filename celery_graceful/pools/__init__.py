"""How an interrupt reaches a running task, and how one is given up: one file a pool.

Come in by `kind_of`, which knows what a worker's pool can do, and makes its adapter.

May not know of the drain: whoever wants a task told of something calls the adapter.
"""

from __future__ import annotations

from celery_graceful.pools.base import Adapter
from celery_graceful.pools.kind import Kind, kind_of, what_keeps_from_cutting

__all__ = [
    "Adapter",
    "Kind",
    "green",
    "kind_of",
    "threads",
    "wake_signal",
    "what_keeps_from_cutting",
]
