"""Batches: members that end, and callbacks that are sent once they have.

What a message says of its batch is in `marks`.

May not know of deliveries, nor of the worker: those note ends here.
"""

__all__ = ["marks"]
