"""One message in the main process, from its arrival to its one outcome.

Come in by `request.adopt` (a worker's tasks), and `ledger.Ledger` (all that is held).

May not know of pools, or of the drain: who wants to hear of an end says so to the ledger.
"""

__all__ = [
    "custom_strategies",
    "duplicates",
    "held_message",
    "late_results",
    "ledger",
    "moments",
    "request",
    "requeue",
    "stage",
    "untold_ends",
    "worker_services",
]
