"""A pool that is derived from none of Celery's: it is left as it is."""

from __future__ import annotations

from celery.utils.log import get_logger

from celery_graceful import interrupt
from celery_graceful.pools.base import Adapter

__all__ = ["UnknownAdapter"]

logger = get_logger(__name__)


class UnknownAdapter(Adapter):
    """Where tasks run, and in what, is not known, so nothing is put around them."""

    def prepare(self) -> None:
        cls = self.worker.pool_cls
        logger.warning(
            "Pool %s.%s is derived from none of Celery's, so its tasks are not cut short when the "
            "worker stops: they end by themselves, or are given up at the hard deadline. Derive it "
            "from one of celery.concurrency's TaskPools for more",
            cls.__module__,
            cls.__qualname__,
        )

    def notify(self) -> None:
        interrupt.wake()  # those that ask, or sleep, in this process
