"""A task that can be interrupted and one that cannot, for a worker of each pool."""

from __future__ import annotations

import logging

from celery import Celery

from celery_graceful import Graceful, GracefulTask

app = Celery("pooled", broker="redis://redis/0", backend="redis://redis/1")
Graceful(app)
log = logging.getLogger(__name__)


@app.task
def plain(number: int) -> int:
    return number


@app.task(base=GracefulTask, bind=True)
def export(self, rows: int) -> int:
    for row in self.iterate(range(rows)):
        log.warning("row %d", row)
        self.sleep(0.1)
    return rows
