"""The worker process of a test: ``celery -A app worker`` with the settings of the test."""

from __future__ import annotations

import json
import os
import sys

__all__ = ["SETTINGS", "main"]

#: Holds them, as JSON.
SETTINGS = "CELERY_GRACEFUL_TEST_SETTINGS"


def main(argv: list[str]) -> None:
    """Run Celery's command line for the app that ``argv`` begins with."""
    from celery.__main__ import main as celery
    from celery.app.utils import find_app

    find_app(argv[0]).conf.update(json.loads(os.environ[SETTINGS]))
    sys.argv[:] = ["celery", "-A", *argv]
    celery()
