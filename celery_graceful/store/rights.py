"""What Redis has to allow to a worker, and what of it it does not.

A user of Redis may be kept to some commands and keys by its ACL. Redis 7 could be asked
(``ACL DRYRUN``), but not by such a user: so everything is tried, in one script, on a key that is of
another type than the commands want.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from celery_graceful.store.store import Store, StoreForbidden, StoreRefused

__all__ = ["COMMANDS", "lists_of", "missing_rights", "why_no_writes"]

#: What is asked of Redis, in scripts or by itself, with arguments with which it does nothing to a
#: string, or nothing that matters.
COMMANDS: dict[str, tuple[str, ...]] = {
    "EXISTS": ("KEY",),
    "EXPIRE": ("KEY", "1"),
    "GET": ("KEY",),
    "HDEL": ("KEY", "x"),
    "HEXISTS": ("KEY", "x"),
    "HGET": ("KEY", "x"),
    "HGETALL": ("KEY",),
    "HINCRBY": ("KEY", "x", "1"),
    "HKEYS": ("KEY",),
    "HLEN": ("KEY",),
    "HMGET": ("KEY", "x"),
    "HSCAN": ("KEY", "0"),
    "HSET": ("KEY", "x", "x"),
    "HSETNX": ("KEY", "x", "x"),
    "LLEN": ("KEY",),
    "LPOP": ("KEY",),
    "LPUSH": ("KEY", "x"),
    "LTRIM": ("KEY", "0", "1"),
    "MGET": ("KEY",),
    "PEXPIRE": ("KEY", "1000"),
    "PTTL": ("KEY",),
    "PING": (),
    "RPOP": ("KEY", "1"),
    "RPUSH": ("KEY", "x"),
    "SADD": ("KEY", "x"),
    "SCARD": ("KEY",),
    "SET": ("KEY", "", "PX", "1000"),
    "SISMEMBER": ("KEY", "x"),
    "SMEMBERS": ("KEY",),
    "SMISMEMBER": ("KEY", "x"),
    "SMOVE": ("KEY", "KEY", "x"),
    "SRANDMEMBER": ("KEY", "1"),
    "SREM": ("KEY", "x"),
    "SSCAN": ("KEY", "0"),
    "TIME": (),
    "ZADD": ("KEY", "1", "x"),
    "ZCARD": ("KEY",),
    "ZRANGE": ("KEY", "0", "1"),
    "ZRANGEBYSCORE": ("KEY", "0", "1"),
    "ZREM": ("KEY", "x"),
    "ZREMRANGEBYSCORE": ("KEY", "0", "1"),
    "DEL": ("KEY",),
    "UNLINK": ("KEY",),
}

_COMMAND = re.compile(r"run the '([^']+)' command")


def lists_of(channel: Any, queues: Iterable[str]) -> list[str]:
    """Of queues, without key prefix: of the first and last priority."""
    priorities = {channel.priority_steps[0], channel.priority_steps[-1]}
    return [channel._q_for_pri(queue, pri) for queue in queues for pri in priorities]


def missing_rights(store: Store, lists: Iterable[str] = ()) -> list[str]:
    """What the user of a Redis lacks, as ``ACL SETUSER`` takes it: nothing mostly.

    Args:
        store: The Redis, with a user.
        lists: Those of the queues that messages are to be taken from.

    Raises:
        StoreAway: It did not answer.
        StoreRefused: It takes no writes, whoever asks.
    """
    own = f"graceful:rights:{secrets.token_hex(8)}"
    keys = {own: "graceful:*", **{name: _pattern(name) for name in lists}}
    try:
        _try(store, list(keys))
        return _refused(store, own)
    except StoreForbidden as exc:  # the script itself, or one of the keys
        lacking = _scripts(exc)
    for key, pattern in keys.items():
        try:
            if lacking:
                store.execute("EXISTS", [key], quiet=True, insist=True)
            else:
                _try(store, [key])
        except StoreForbidden:
            right = f"~{store.prefix}{pattern}"
            lacking += [right] if right not in lacking else []
    if not any(right.endswith("graceful:*") or right == "+eval" for right in lacking):
        lacking += _refused(store, own)
    return lacking


def why_no_writes(store: Store) -> StoreRefused | None:
    """Why a Redis takes no writes, from nobody: it is full, cannot save, is a replica.

    ``None`` if it does, and where its user may not write. Nothing is written.
    """
    try:
        store.execute("SET", ["graceful:rights:none"], ["", "XX", "PX", 1], insist=True, quiet=True)
    except StoreForbidden:
        return None
    except StoreRefused as exc:
        return exc
    return None


def _pattern(name: str) -> str:
    """Of a queue's lists, one for each priority."""
    return name.partition("\6\x16")[0] + "*"


def _scripts(exc: StoreForbidden) -> list[str]:
    """Whether it is scripts that are not allowed."""
    found = _COMMAND.search(str(exc))
    return sorted({"+eval", "+evalsha", _plus(found[1])}) if found else []


def _refused(store: Store, own: str) -> list[str]:
    words = [
        word
        for name, arguments in COMMANDS.items()
        for word in (name, str(len(arguments)), *arguments)
    ]
    return [_plus(name) for name in _try(store, [own], words)]


def _try(store: Store, keys: Sequence[str], commands: Sequence[str] = ()) -> list[str]:
    refused: list[str] = store.run("rights", keys, commands, insist=True, quiet=True)
    return refused


def _plus(name: str) -> str:
    return f"+{name.lower()}"
