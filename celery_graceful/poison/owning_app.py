"""Which app a task in quarantine is of, where several share one Redis database.

Their workers rescue each other's claims, whoever comes first. But who waits for the result of a
task looks into the result backend of its own app, and hears the signals there: only workers of
that app tell of its failure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.system.describe import describe
from celery_graceful.system.per_app import PerApp

__all__ = ["is_told_here", "origin_of", "same_results"]

logger = get_logger(__name__)

_found: PerApp[dict[str, str]] = PerApp()


def origin_of(app: Any) -> dict[str, str]:
    """What is kept of an app: its name, and a digest of where its results are."""
    if app not in _found:
        _found[app] = {"app": app.main or "", "results": _results_of(app)}
    return _found[app]


def same_results(app: Any, origin: Mapping[str, Any]) -> bool:
    """Whether what ``app`` stores is found by callers of the app of that origin; or none is known.

    Args:
        app: The Celery app.
        origin: As ``origin_of`` has it, among other things.
    """
    return origin.get("results", "") in ("", origin_of(app)["results"])


def is_told_here(app: Any, name: str, origin: Mapping[str, Any]) -> bool:
    """Whether a worker of ``app`` tells of the failure of a task.

    Where the same backend has another address here, it does if it is the same app, and knows it.

    Args:
        app: The Celery app.
        name: Of the task.
        origin: Of the worker that ran it.
    """
    if same_results(app, origin):
        return True
    return name in app.tasks and origin.get("app", "") == origin_of(app)["app"]


def _results_of(app: Any) -> str:
    try:
        backend = app.backend
        options = app.conf.get("result_backend_transport_options") or {}
        where = [type(backend).__name__, backend.as_uri(), options.get("global_keyprefix") or ""]
    except Exception as exc:  # who stores a result is told
        logger.debug("Could not say where results are: %s", describe(exc))
        return ""
    return hashlib.sha1("\0".join(where).encode(errors="replace")).hexdigest()[:16]
