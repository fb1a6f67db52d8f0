"""The app of a worker beside Celery's integration tests."""

from __future__ import annotations

import os

from celery import Celery

from tests.suites.plugin import make_all_graceful

if os.environ.get("GRACEFUL"):
    make_all_graceful(os.environ["GRACEFUL"])

app = Celery("celery.tests", broker=os.environ["TEST_BROKER"], backend=os.environ["TEST_BACKEND"])
app.conf.update(result_extended=True, task_create_missing_queues=False)
app.conf.include = ["t.integration.tasks", "celery.contrib.testing.tasks"]
