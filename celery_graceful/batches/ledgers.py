"""The ledger of an app's batches: in its store, or in memory where tasks are run at once."""

from __future__ import annotations

from typing import Any

from celery.app import default_app

from celery_graceful.batches.eager import EagerLedger, eager_ledger
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.exceptions import SettingsError
from celery_graceful.store.app_stores import find_store

__all__ = ["ledger_of"]


def ledger_of(app: Any) -> BatchLedger | EagerLedger:
    """Where the batches of an app are known.

    Raises:
        SettingsError: There is no store, or a setting cannot be used.
    """
    if app.conf.task_always_eager:
        return eager_ledger(app)
    if app.conf.task_protocol == 1:
        mend = "leave it out: batches are known by headers, which protocol 1 has not"
        raise SettingsError("task_protocol", 1, mend)
    store = find_store(app)
    if store is None:
        url = "give the URL of one, as redis://localhost/2"
        if app.main == "default" and default_app == app:  # which nobody made
            mend = (
                "no app was given, and none is the current one of this thread: say app=, or "
                f"app.set_default() once. Else, batches are kept in Redis: {url}"
            )
        else:
            which = f"if {app.main or 'the current one'} is not the app that you mean"
            mend = f"batches are kept in Redis: {url}; or app=, {which}"
        raise SettingsError("graceful_store", None, mend)
    return BatchLedger(store)
