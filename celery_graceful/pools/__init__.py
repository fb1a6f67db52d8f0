"""How an interrupt reaches a running task, and how one is given up: one file a pool."""

from __future__ import annotations

from celery_graceful.pools.base import Adapter
from celery_graceful.pools.kind import Kind, kind_of

__all__ = ["Adapter", "Kind", "kind_of"]
