"""Batches: members that are waited for together, and what follows when they have ended.

What is known of a batch, in the store, is in `ledger`, in the words of `model` and `status`; what a
message says of its batch in `marks`.

May not know of deliveries, nor of the worker: those note ends here.
"""

__all__ = ["batch", "marks"]
