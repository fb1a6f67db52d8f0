"""What is known of a worker's pool before there is anything that it could run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery_graceful.pools.base import Adapter
from celery_graceful.system import native
from celery_graceful.system.loaded import loaded

__all__ = ["Kind", "kind_of", "what_keeps_from_cutting"]


@dataclass(frozen=True)
class Kind:
    """The kind of one pool.

    Attributes:
        adapter: How an interrupt reaches its tasks, and how one is given up.
        spawns: Children are started fresh, so the board has to have a name.
        is_green: Celery takes its tasks for greenlets, and they are ones that give way.
    """

    adapter: type[Adapter]
    spawns: bool
    is_green: bool

    @property
    def in_process(self) -> bool:
        """Tasks run in the main process, where one of them may hold the GIL for ever."""
        return self.adapter.in_process

    @property
    def can_pass_by(self) -> bool:
        """What the pool was handed can be taken back until it begins."""
        return self.adapter.can_pass_by


def kind_of(worker: Any) -> Kind:
    """The kind of the pool of ``worker``: one of Celery's own, or of one derived from it."""
    adapter = _adapter_of(worker.pool_cls)
    is_green = bool(getattr(worker.pool_cls, "is_green", False)) and native.is_green()
    return Kind(adapter, adapter.spawns(worker), is_green)


def what_keeps_from_cutting(pool_cls: Any) -> tuple[str, str] | None:
    """Why tasks of a pool are not cut short when a worker stops, and the mend; mostly ``None``.

    That a pool of greenlets runs where nothing is patched, only a worker can tell.
    """
    from celery_graceful.pools.unknown import UnknownAdapter

    adapter = _adapter_of(pool_cls)
    return (adapter.why, adapter.mend) if adapter is UnknownAdapter else None


def _adapter_of(pool_cls: Any) -> type[Adapter]:
    cls: type[Adapter]
    if _is(pool_cls, "prefork"):
        from celery_graceful.pools.prefork import PreforkAdapter as cls
    elif _is(pool_cls, "thread"):
        from celery_graceful.pools.threads import ThreadsAdapter as cls
    elif _is(pool_cls, "gevent") or _is(pool_cls, "eventlet"):
        if native.is_green():
            from celery_graceful.pools.green import GreenAdapter as cls
        else:
            from celery_graceful.pools.unknown import UnpatchedAdapter as cls
    elif _is(pool_cls, "solo"):
        from celery_graceful.pools.solo import SoloAdapter as cls
    else:
        from celery_graceful.pools.unknown import UnknownAdapter as cls
    return cls


def _is(pool_cls: Any, name: str) -> bool:
    # Whoever derives from it has imported it; not all can be imported everywhere.
    celerys = loaded(f"celery.concurrency.{name}", "TaskPool") or ()
    return isinstance(pool_cls, type) and issubclass(pool_cls, celerys)
