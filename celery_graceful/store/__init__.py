"""Redis as the store: of checkpoints, leases, deaths; and the scripts that run in it.

Come in by `app_stores.find_store`; scripts are run by their name (`lua/`).

May not know what is stored, or what for.
"""

from celery_graceful.store.app_stores import find_store
from celery_graceful.store.store import Store, StoreAway

__all__ = [
    "Store",
    "StoreAway",
    "answers",
    "app_stores",
    "client",
    "connections",
    "find_store",
    "meanwhile",
    "rights",
    "scan",
    "scripts",
    "start_note",
    "store",
    "together",
    "tracking",
]
