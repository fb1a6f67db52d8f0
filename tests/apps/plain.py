"""A plain app with the plugin: no task of it knows of celery_graceful."""

from __future__ import annotations

from celery_graceful import Graceful
from tests.apps import make_app

app = make_app("plain")
graceful = Graceful(app)
