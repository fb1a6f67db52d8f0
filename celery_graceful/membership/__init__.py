"""A worker among others: on which servers it is a member, and what it says of itself there.

Come in by `servers`.

May not know of the drain.
"""

__all__ = ["member", "servers"]
