"""Tasks that may be under way only once: locks of celery-once and of celery-singleton."""

from __future__ import annotations

import logging
import os

from celery import Celery
from celery_once import QueueOnce
from celery_singleton import Singleton

from celery_graceful import Graceful, GracefulTask

app = Celery("locked", broker="redis://redis/0", backend="redis://redis/1")
Graceful(app)
log = logging.getLogger(__name__)

#: Seconds that a row takes.
PAUSE = float(os.environ.get("PAUSE", "0.1"))


def keep_locks(url: str) -> None:
    """Both keep them in this Redis."""
    once = {"backend": "celery_once.backends.Redis", "settings": {"url": url}}
    app.conf.update(ONCE=once, singleton_backend_url=url)


if "CELERY_RESULT_BACKEND" in os.environ:
    keep_locks(os.environ["CELERY_RESULT_BACKEND"])


class Once(QueueOnce, GracefulTask):
    abstract = True


class Single(Singleton, GracefulTask):
    abstract = True


def export(self, rows):
    for row in self.iterate(range(rows), every=1):
        log.warning("row %d", row)
        self.sleep(PAUSE)


once = app.task(base=Once, bind=True, name="once")(export)
single = app.task(base=Single, bind=True, name="single")(export)
