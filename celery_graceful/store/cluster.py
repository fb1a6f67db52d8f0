"""A Redis Cluster: what is asked for together, as by a script, has to be in one of its slots.

All keys of ours, and those of kombu's queues, are where their prefix has a hash tag:
https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags
"""

from __future__ import annotations

import re

__all__ = ["place_in_cluster"]

#: By what a store is called: where its key prefix is set.
_OPTIONS = {
    "graceful_store": "graceful_store_options",
    "the broker": "broker_transport_options",
    "the result backend": "result_backend_transport_options",
}

_TAG = re.compile(r"\{[^}]+\}")


def place_in_cluster(source: str, prefix: str, said: str) -> str:
    """What to do so that a server has all keys.

    Args:
        source: What the store is called.
        prefix: In front of its keys.
        said: What it has answered.
    """
    if "SELECT" in said:
        return "name database 0 in its URL: a Redis Cluster has no other"
    if not _TAG.search(prefix):
        option = f"{_OPTIONS.get(source, source)}['global_keyprefix']"
        return f"set {option} to '{{graceful}}:', and all keys are in one slot of the Redis Cluster"
    return f"name the master that has the slot of {prefix!r}, or a Redis that is no cluster"
