"""Reliable fetch on Redis: who holds which message, and for how long.

Come in by `claiming_transports` (what an app connects with), `held_claims` (what is held), `lease`,
`fence` (whether it still is), and `rescue` (of the claims of the dead).

May not know what a task is, or what becomes of one.
"""

__all__ = [
    "acks",
    "app_amqp",
    "arrival",
    "begun",
    "claimant",
    "claiming_transports",
    "ear",
    "failover",
    "fence",
    "held_claims",
    "lease",
    "lease_validity",
    "moves",
    "queue_lists",
    "rescue",
    "sending",
    "server_checks",
    "undelivered",
]
