import time

from celery import shared_task
from flask import current_app


@shared_task(bind=True)
def export(self, rows):
    for row in self.iterate(range(rows), every=1):
        time.sleep(0.05)  # what takes its time
        with open(current_app.config["EXPORT_FILE"], "a") as file:
            print(row, file=file)
