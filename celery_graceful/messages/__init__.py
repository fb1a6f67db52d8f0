"""Messages as brokers know them: sent again, marked, examined.

Come in by the module that does it.

May not know of claims, nor of requests: only of kombu's messages and connections, and of what a
task sees of its message.
"""

__all__ = [
    "amqp",
    "bounded_connections",
    "broadcast",
    "brokers_without_acks",
    "comebacks",
    "context",
    "decoding",
    "fields",
    "fingerprint",
    "own_headers",
    "redelivered_flag",
    "republish",
    "routing",
    "side_queues",
    "validation",
]
