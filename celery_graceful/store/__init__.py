"""Redis as the store: of checkpoints, leases, deaths; and the scripts that run in it.

Come in by `store.find_store`; scripts are run by their name (`lua/`).

May not know what is stored, or what for.
"""

from celery_graceful.store.store import Store, StoreAway, find_store

__all__ = [
    "Store",
    "StoreAway",
    "client",
    "connections",
    "find_store",
    "rights",
    "scan",
    "start_note",
    "store",
]
