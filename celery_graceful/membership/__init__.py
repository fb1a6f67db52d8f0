"""A worker among others: on which servers it is a member, and what it says of itself there.

Come in by `broker_servers`; what is told to listeners goes by `events`.

May not know of the drain.
"""

__all__ = ["broker_servers", "events", "member"]
