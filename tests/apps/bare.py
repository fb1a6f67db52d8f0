"""An app without the plugin. With IMPORT in the environment it uses the package elsewhere."""

from __future__ import annotations

import os
import time

from tests.apps import make_app, say

app = make_app("bare")

if "IMPORT" in os.environ:
    from celery import Celery

    import celery_graceful

    other = Celery("other", set_as_current=False)
    celery_graceful.Graceful(other)


@app.task(name="two_seconds", bind=True)
def two_seconds(self, number):
    say("started", self.name, number)
    time.sleep(2)
    say("finished", self.name, number)
    return number
