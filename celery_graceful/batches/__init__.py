"""Batches: members that are waited for together, and what follows when they have ended.

What is known of a batch, in the store, is in `ledger`, in the words of `model` and `status`; what a
message says of its batch in `marks`. How a worker tells it of ends is in `ends`, how callbacks are
sent in `outbox`, and what is asked before a part of a batch runs in `running`. Celery's chords are
entered by `chord_groups`, and followed by `chord_counter`.

May not know of deliveries, nor of the worker: those note ends here.
"""

__all__ = [
    "batch",
    "callback_publishing",
    "cancellations",
    "caretaker_rounds",
    "chord_counter",
    "chord_groups",
    "ends",
    "findings",
    "holders",
    "kept_headers",
    "ledger",
    "manual_remedies",
    "marks",
    "member_part",
    "model",
    "outbox",
    "running",
    "search_state",
    "skipped_or_replaced",
    "status",
]
