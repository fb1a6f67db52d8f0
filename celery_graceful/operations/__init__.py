"""What operators see and do: one set of objects under all doors.

Come in by `Operations`; what it returns is in `records` and `batch_records`. What is read comes
from leases, claims and the store, and needs no worker to answer; what only a worker knows is asked
for by remote control, with a bounded wait (`asking`).

May not know of a running worker, nor of who prints it.
"""

from celery_graceful.operations.operations import Operations

__all__ = [
    "Operations",
    "asking",
    "batch_records",
    "batches",
    "killing",
    "operations",
    "pasting",
    "plain_workers",
    "quarantine",
    "records",
    "rescue",
    "stores",
    "waiting",
]
