"""What Redis has to allow to a worker, and what of it it does not.

A user of Redis may be kept to some commands, keys and channels by its ACL. Redis 7 could be asked
(``ACL DRYRUN``), but not by such a user: so everything is tried, and nothing is done. Redis looks
at rights when a command is put into a transaction, and that one is discarded. Without the right to
transactions the commands are run, with arguments with which they do nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery_graceful.store.answers import is_answer, is_forbidden
from celery_graceful.store.client import listening
from celery_graceful.store.store import Store, StoreForbidden, StoreRefused

__all__ = ["COMMANDS", "NOBODY", "Needs", "lists_of", "missing_rights", "why_no_writes"]

#: What is asked of Redis, in scripts or by itself, with arguments with which it does nothing to a
#: string, or nothing that matters.
COMMANDS: dict[str, tuple[str, ...]] = {
    "EVAL": ("return 1", "0"),
    "EVALSHA": ("0" * 40, "0"),
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

#: Redis takes them outside a transaction only. Without one ``EXEC`` does nothing.
_OUTSIDE = {"WATCH": ("KEY",), "UNWATCH": (), "EXEC": (), "MULTI": ()}

_SUBSCRIPTIONS = ("PSUBSCRIBE", "PUNSUBSCRIBE", "SUBSCRIBE", "UNSUBSCRIBE")

#: A channel that nobody listens to.
NOBODY = "graceful:rights"

#: One of them is allowed to whoever may do anything with a key. They leave it as it is.
_OF_A_KEY = (
    *(("EXISTS",), ("GET",), ("LLEN",), ("HLEN",), ("SCARD",), ("ZCARD",)),
    *(("PEXPIRE", "x"), ("EXPIRE", "x"), ("SET", "x", "x"), ("LTRIM", "x", "x")),
)


@dataclass(frozen=True)
class Needs:
    """What is to be allowed; with all commands of ours, their keys as well.

    Attributes:
        commands: With arguments with which they do nothing to a string; ``KEY`` stands for a key
            of ours, and ``SCRIPT|LOAD`` for a command of two words.
        keys: Each, with its prefix, with the pattern that allows it.
        channels: Each, with the pattern that allows it.
        patterns: That are subscribed to: each has to be allowed as it is written.
    """

    commands: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: COMMANDS)
    keys: Mapping[str, str] = field(default_factory=dict)
    channels: Mapping[str, str] = field(default_factory=dict)
    patterns: Sequence[str] = ()


def lists_of(channel: Any, queues: Iterable[str]) -> dict[str, str]:
    """The lists of queues, of the first and last priority, as ``Needs`` has keys."""
    prefix = channel.global_keyprefix or ""
    priorities = {channel.priority_steps[0], channel.priority_steps[-1]}
    return {
        prefix + channel._q_for_pri(queue, pri): f"{prefix}{queue}*"
        for queue in queues
        for pri in priorities
    }


def missing_rights(store: Store, needs: Needs | None = None) -> list[str]:
    """All that the user of a Redis lacks, as ``ACL SETUSER`` takes it: nothing mostly.

    Args:
        store: The Redis, with a user.
        needs: What it has to be allowed; without, what all workers need.

    Raises:
        StoreAway: It did not answer.
    """
    needs = needs or Needs()
    own = f"{store.prefix}graceful:rights:{secrets.token_hex(8)}"
    ours = {own: f"{store.prefix}graceful:*"} if COMMANDS.keys() <= needs.commands.keys() else {}
    tries: dict[str, list[tuple[str, ...]]] = {}
    for key, pattern in {**ours, **needs.keys}.items():
        asked = [(name, key, *args) for name, *args in _OF_A_KEY]
        tries.setdefault(f"~{pattern}", []).extend(asked)
    for pattern in needs.patterns:
        tries[f"&{pattern}"] = [("PSUBSCRIBE", pattern)]
    for channel, pattern in {**{one: one for one in needs.patterns}, **needs.channels}.items():
        asked = [("SUBSCRIBE", channel), ("PUBLISH", channel, "")]
        tries.setdefault(f"&{pattern}", []).extend(asked)
    # Should they be run: a string first, as the others want something else.
    order = {"SET": -1, "DEL": 1, "UNLINK": 1}
    commands = {
        name: needs.commands.get(name, COMMANDS["SET"]) for name in {"SET", *needs.commands}
    }
    for name in sorted(commands, key=lambda one: (order.get(one, 0), one)):
        tries[f"+{name.lower()}"] = [_line(name, commands[name], own)]
    lacking: set[str] = store.alone(lambda connection: _lacking(connection, tries, own))
    if "SET" not in needs.commands:
        lacking.discard("+set")
    return sorted(lacking, key=lambda right: ("+r~&".index(right[0]), right))


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


def _lacking(connection: Any, tries: Mapping[str, Sequence[tuple[str, ...]]], own: str) -> set[str]:
    refusals: dict[tuple[str, ...], str] = {}

    def ask(lines: Iterable[tuple[str, ...]]) -> None:
        asked = list(dict.fromkeys(lines))
        for line, answer in zip(asked, _answers(connection, asked), strict=True):
            refusals[line] = _refusal(answer)

    outside = [_line(name, args, own) for name, args in _OUTSIDE.items()]
    ask(outside)
    lines = [line for some in tries.values() for line in some if line not in outside]
    if refusals["MULTI",]:
        # They are run: nobody is told anything, and after a subscription there is nothing but such.
        lines = [line for line in lines if line[0] != "PUBLISH" or line[1] == NOBODY]
        lines.sort(key=lambda line: line[0] in _SUBSCRIPTIONS)
    ask(lines)
    lacking = set()
    for right, some in tries.items():
        found = {refusals.get(line, "command") for line in some}
        if right[0] == "+":
            if "command" in found:
                lacking.add(right)
        elif found == {"command"}:
            # It cannot be known: who may use no key, or channel, may have been given all of them,
            # and to that Redis adds none.
            lacking |= {right, "resetkeys" if right[0] == "~" else "resetchannels"}
        elif "object" in found:
            lacking.add(right)
    return lacking


def _line(name: str, args: Sequence[str], own: str) -> tuple[str, ...]:
    return (*name.split("|"), *(own if one == "KEY" else one for one in args))


def _answers(connection: Any, lines: Sequence[Sequence[str]]) -> list[Any]:
    connection.send_packed_command(connection.pack_commands(lines))
    answers = []
    for _ in lines:
        try:
            answers.append(connection.read_response(**listening(connection)))
        except Exception as exc:
            if not is_answer(exc):
                raise
            answers.append(exc)
    return answers


def _refusal(answer: Any) -> str:
    """What is refused with an answer: a ``command``, or the ``object`` that it was to be used on.

    An empty one is no error, ``nothing`` one of another kind.

    What the server refuses to everybody is no matter of rights: a full one looks at them first.
    """
    if not isinstance(answer, Exception):
        return ""
    text = str(answer)
    if is_forbidden(answer):
        return "command" if "to run the" in text else "object"
    return "command" if "unknown command" in text.lower() else "nothing"
