"""Sentry's SDK as a worker needs it."""

from __future__ import annotations

import os

import sentry_sdk
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.integrations.redis import RedisIntegration


def init(monitor_beat_tasks: bool = False, **options: object) -> None:
    """Report to SENTRY_DSN, if that is set.

    Without the integrations that Sentry adds of itself: for them it imports all that happens to be
    installed for other tests, Django first, which takes as long as the rest of a worker's start.
    """
    if "SENTRY_DSN" in os.environ:
        sentry_sdk.init(
            dsn=os.environ["SENTRY_DSN"],
            integrations=[
                CeleryIntegration(monitor_beat_tasks=monitor_beat_tasks),
                RedisIntegration(),
            ],
            auto_enabling_integrations=False,
            **options,
        )
