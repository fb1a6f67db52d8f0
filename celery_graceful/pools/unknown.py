"""A pool that is derived from none of Celery's, or is not what it should be: left as it is."""

from __future__ import annotations

from celery.utils.log import get_logger

from celery_graceful.pools.base import Adapter
from celery_graceful.runs import interrupt
from celery_graceful.system.process import Owner

__all__ = ["UnknownAdapter", "UnpatchedAdapter"]

logger = get_logger(__name__)


class UnknownAdapter(Adapter):
    """Where tasks run, and in what, is not known, so nothing is put around them."""

    may_keep_loop = True  # for all that is known
    why = "is derived from none of Celery's"
    mend = "Derive it from one of celery.concurrency's TaskPools for more"

    def prepare(self, owner: Owner) -> None:
        cls = self.worker.pool_cls
        logger.warning(
            "Pool %s.%s %s, so its tasks are not cut short when the worker stops: they end by "
            "themselves, or are given up at the hard deadline. %s",
            cls.__module__,
            cls.__qualname__,
            self.why,
            self.mend,
        )

    def notify(self) -> None:
        interrupt.wake()  # those that ask, or sleep, in this process


class UnpatchedAdapter(UnknownAdapter):
    """Greenlets in a process where nothing has been patched: each holds up all others."""

    why = "runs in a process that is not patched"
    mend = "Celery patches it for `-P gevent` and `--pool=gevent`, and not for `-Pgevent`"
