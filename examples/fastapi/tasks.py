import logging
import time

from celery import Celery
from celery_graceful import Graceful

log = logging.getLogger(__name__)

app = Celery("shop")
app.config_from_object("celeryconfig")
Graceful(app)


@app.task(bind=True)
def export(self, rows):
    for row in self.iterate(range(rows), every=1):
        time.sleep(0.05)  # what takes its time
        log.warning("row %d", row)
