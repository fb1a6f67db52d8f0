"""Chords whose results, and counter, are in a database: django-celery-results.

With HOLD in the environment, whoever is about to send a body waits there while that file exists.
"""

from __future__ import annotations

import os
import time

import django
from django.conf import settings

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ["DATABASE"],
            "OPTIONS": {"timeout": 30},
        }
    },
    INSTALLED_APPS=["django_celery_results"],
    USE_TZ=True,
)
django.setup()

from celery_graceful import Graceful, GracefulTask  # noqa: E402
from tests.apps import make_app, say  # noqa: E402

app = make_app("django_chords")
app.conf.result_backend = "django-db"
app.conf.graceful_track_chords = True
Graceful(app)

if "HOLD" in os.environ:
    from django_celery_results.backends import database

    _trigger = database.trigger_callback

    def trigger(*args, **kwargs):
        if os.path.exists(os.environ["HOLD"]):
            say("dispatches")
            while os.path.exists(os.environ["HOLD"]):
                time.sleep(0.02)
        return _trigger(*args, **kwargs)

    database.trigger_callback = trigger


@app.task(base=GracefulTask, name="part")
def part(value):
    say("part", value)
    return value


@app.task(base=GracefulTask, name="total")
def total(values):
    say("total", *values)
    return sum(values)


def main():
    """Make the tables."""
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


if __name__ == "__main__":
    main()
