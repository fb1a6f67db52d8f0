"""Messages as brokers know them: sent again, marked, examined.

Come in by the module that does it.

May not know of claims, nor of requests: only of kombu's messages and connections.
"""

__all__ = [
    "bounded_connections",
    "brokers_without_acks",
    "comebacks",
    "decoding",
    "fields",
    "fingerprint",
    "redelivered_flag",
    "republish",
    "side_queues",
    "validation",
]
