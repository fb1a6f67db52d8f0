"""An app without the plugin. With IMPORT in the environment it uses the package elsewhere."""

from __future__ import annotations

import os

from tests.apps import make_app, say, wait_for_file

app = make_app("bare")

if "IMPORT" in os.environ:
    from celery import Celery

    import celery_graceful

    other = Celery("other", set_as_current=False)
    celery_graceful.Graceful(other)

if "FORGOTTEN" in os.environ:
    from celery_graceful import GracefulTask

    def nothing():
        """It does not matter what it does."""

    for number in range(7):
        app.task(name=f"graceful {number}", base=GracefulTask)(nothing)


@app.task(name="gated", bind=True)
def gated(self, path):
    say("started", self.name)
    wait_for_file(path)
    say("finished", self.name)
