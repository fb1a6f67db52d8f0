"""What the user of a Redis has to be allowed: by this package, by kombu and by Celery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_graceful.doctor.servers import RedisServer
from celery_graceful.store.connections import unconnected_channel
from celery_graceful.store.rights import COMMANDS, NOBODY, Needs, lists_of, missing_rights
from celery_graceful.store.store import Store
from celery_graceful.store.tracking import CHANNEL

__all__ = ["CELERYS", "KOMBUS", "OURS", "lacking_rights"]

Lacking = tuple[RedisServer, list[str]]

#: Of ours, that workers can do without: the history, what finds and looks after batches, what
#: tells them of messages that nobody rings for, and which server it is.
OURS = {
    "CLIENT|ID": (),
    "CLIENT|TRACKING": ("OFF",),
    "INFO": ("server",),
    "LRANGE": ("KEY", "0", "0"),
    "SCAN": ("0", "COUNT", "1"),
    "SUBSCRIBE": (NOBODY,),
    "XADD": ("KEY", "*", "x", "x"),
    "XRANGE": ("KEY", "-", "+"),
    "XREVRANGE": ("KEY", "+", "-"),
    "ZSCORE": ("KEY", "x"),
}

#: Of kombu's transport, with the client's transactions and its lock.
KOMBUS = {
    "BRPOP": ("KEY", "0.001"),
    "DEL": ("KEY",),
    "EVALSHA": ("0" * 40, "0"),
    "EXEC": (),
    "EXISTS": ("KEY",),
    "GET": ("KEY",),
    "HDEL": ("KEY", "x"),
    "HGET": ("KEY", "x"),
    "HSET": ("KEY", "x", "x"),
    "LLEN": ("KEY",),
    "LPUSH": ("KEY", "x"),
    "MULTI": (),
    "PEXPIRE": ("KEY", "1000"),
    "PING": (),
    "PSUBSCRIBE": (NOBODY,),
    "PUBLISH": (NOBODY, ""),
    "PUNSUBSCRIBE": (NOBODY,),
    "RPOP": ("KEY",),
    "RPUSH": ("KEY", "x"),
    "SADD": ("KEY", "x"),
    "SCRIPT|LOAD": ("return 1",),
    "SMEMBERS": ("KEY",),
    "SREM": ("KEY", "x"),
    "UNSUBSCRIBE": (NOBODY,),
    "UNWATCH": (),
    "WATCH": ("KEY",),
    "ZADD": ("KEY", "1", "x"),
    "ZRANGE": ("KEY", "0", "1"),
    "ZREM": ("KEY", "x"),
    "ZREVRANGEBYSCORE": ("KEY", "1", "0"),
}

#: Of Celery's result backend, chords and all.
CELERYS = {
    "DEL": ("KEY",),
    "EVALSHA": ("0" * 40, "0"),
    "EXEC": (),
    "EXISTS": ("KEY",),
    "EXPIRE": ("KEY", "1"),
    "GET": ("KEY",),
    "INCR": ("KEY",),
    "LLEN": ("KEY",),
    "LRANGE": ("KEY", "0", "0"),
    "MGET": ("KEY",),
    "MULTI": (),
    "PING": (),
    "PUBLISH": (NOBODY, ""),
    "RPUSH": ("KEY", "x"),
    "SADD": ("KEY", "x"),
    "SCRIPT|LOAD": ("return 1",),
    "SET": ("KEY", "", "PX", "1000"),
    "SETEX": ("KEY", "1", ""),
    "SISMEMBER": ("KEY", "x"),
    "SUBSCRIBE": (NOBODY,),
    "TIME": (),
    "UNSUBSCRIBE": (NOBODY,),
    "ZADD": ("KEY", "1", "x"),
    "ZCOUNT": ("KEY", "0", "1"),
    "ZRANGE": ("KEY", "0", "1"),
    "ZREM": ("KEY", "x"),
}


def store_needs(store: Store) -> Needs:
    """Of this package, wherever it keeps something."""
    return Needs({**COMMANDS, **OURS, **_select(store)}, channels={CHANNEL: CHANNEL})


def broker_needs(app: Any, transport: Any, store: Store) -> Needs:
    """Of a worker, where it consumes.

    Args:
        app: The Celery app.
        transport: kombu's, for Redis.
        store: The same server.
    """
    conf = app.conf
    box, events = f"{conf.control_exchange}.pidbox", conf.event_exchange
    with unconnected_channel(transport) as channel:
        channel._get_pool()  # from there it knows its database, which is part of names
        prefix = channel.global_keyprefix or ""
        keys = lists_of(channel, app.amqp.queues.consume_from)
        unacked = channel.unacked_key, channel.unacked_index_key, channel.unacked_mutex_key
        for key, pattern in {
            channel.keyprefix_queue % box: "_kombu*",
            **{key: _of(key, "unacked") for key in unacked},
            f"x.reply.{box}": f"*.{box}*",
            f"{conf.event_queue_prefix}.x": f"{conf.event_queue_prefix}*",
        }.items():
            keys[prefix + key] = prefix + pattern

        def topic(exchange: str, key: str = "") -> str:
            return str(prefix + channel._get_publish_topic(exchange, key))

        channels = {
            topic(events, f"{sort}.x"): topic(events, f"{sort}.*") for sort in ("worker", "task")
        }
        patterns = [topic(box), topic(events, "worker.*")]
    return Needs({**KOMBUS, **_select(store)}, keys, channels, patterns)


def result_needs(app: Any, store: Store) -> Needs:
    """Of Celery, where results are kept."""
    kinds = (app.backend.task_keyprefix, app.backend.group_keyprefix)
    task, group = (kind.decode() if isinstance(kind, bytes) else kind for kind in kinds)
    return Needs(
        {**CELERYS, **_select(store)},
        {f"{task}x": f"{task}*", f"{group}x": f"{group}*"},
        {f"{task}x": f"{task}*"},
    )


def lacking_rights(app: Any, transport: Any, servers: Sequence[RedisServer]) -> list[Lacking]:
    """What workers will miss, once for each user of a server.

    Args:
        app: The Celery app.
        transport: kombu's, of the broker.
        servers: Those that answer, that of the results the last.
    """
    wanted: dict[tuple[str, str], tuple[RedisServer, list[Needs]]] = {}
    for server in servers:
        store = server.store
        key = store.address, store.user
        needs = result_needs(app, store) if server.is_results else store_needs(store)
        wanted.setdefault(key, (server, []))[1].append(needs)
        if server.is_broker:
            wanted[key][1].append(broker_needs(app, transport, store))
    return [
        (server, missing_rights(server.store, _together(needs)))
        for server, needs in wanted.values()
        if not server.no_writes  # the server says why, which is a finding of its own
    ]


def _together(needs: Sequence[Needs]) -> Needs:
    return Needs(
        {name: args for one in needs for name, args in one.commands.items()},
        {key: pattern for one in needs for key, pattern in one.keys.items()},
        {key: pattern for one in needs for key, pattern in one.channels.items()},
        [pattern for one in needs for pattern in one.patterns],
    )


def _of(key: str, usual: str) -> str:
    return f"{usual}*" if key.startswith(usual) else key


def _select(store: Store) -> dict[str, tuple[str, ...]]:
    return {"SELECT": (str(store.db),)} if store.db else {}
