"""Messages as brokers know them: sent again, marked, examined.

Come in by the module that does it.

May not know of claims, nor of requests: only of kombu's messages and connections.
"""

__all__ = [
    "brokers_without_acks",
    "delay_queues",
    "fields",
    "fingerprint",
    "redelivered_flag",
    "republish",
    "spare_connections",
    "validation",
]
