"""Reliable fetch on Redis: who holds which message, and for how long.

Come in by `transports` (what an app connects with), `book` (what is held), `lease`, `fence`
(whether it still is), and `rescue` (of the claims of the dead).

May not know what a task is, or what becomes of one.
"""

__all__ = [
    "amqp",
    "arrival",
    "begun",
    "book",
    "claimant",
    "failover",
    "fence",
    "lease",
    "lease_validity",
    "rescue",
    "sending",
    "transports",
]
