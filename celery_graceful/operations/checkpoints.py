"""What tasks have saved: read, listed and deleted by whoever asks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from celery_graceful.checkpoints.checkpoint import CURSOR, STEP, key_of
from celery_graceful.checkpoints.codec import decode
from celery_graceful.operations.records import Checkpoint, Loop
from celery_graceful.store.store import Store

__all__ = ["clear", "find_keys", "read", "read_key"]

_PREFIX = key_of("", "").rstrip(":") + ":"

#: Keys that are looked at in one step.
KEYS_AT_ONCE = 1000


def read(store: Store, name: str, task_id: str) -> Checkpoint | None:
    """That of one task; ``None`` if nothing is saved.

    Raises:
        StoreAway: The store does not answer.
    """
    return read_key(store, key_of(name, task_id))


def read_key(store: Store, key: str) -> Checkpoint | None:
    """As ``read``, of a key."""
    answer = store.execute("HGETALL", [key], insist=True)
    found = (
        answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))
    )
    if not found:
        return None
    left = int(store.execute("PTTL", [key], insist=True))
    name, _, task_id = key[len(_PREFIX) :].rpartition(":")
    return _checkpoint(name, task_id, found, None if left < 0 else left / 1000)


def _checkpoint(name: str, task_id: str, found: dict[str, str], left: float | None) -> Checkpoint:
    loops: list[Loop] = []
    steps: list[tuple[int, str]] = []
    for field, text in found.items():
        if field.startswith(CURSOR):
            _, cursor, ended = decode(text)
            loops.append(Loop(field[len(CURSOR) :], cursor, ended))
        elif field.startswith(STEP):
            steps.append((decode(text)[0], field[len(STEP) :]))
    return Checkpoint(
        task_id,
        name,
        int(found.get("interruptions", 0)),
        tuple(loops),
        tuple(step for _, step in sorted(steps)),
        decode(found["state"]) if "state" in found else None,
        sum(len(field) + len(text) for field, text in found.items()),
        left,
    )


def find_keys(store: Store, task_id: str = "") -> Iterator[str]:
    """Keys of all that is saved, or of the checkpoints of one task; walks through all keys.

    Raises:
        StoreAway: The store does not answer.
    """
    ending = f":{_quoted(task_id)}" if task_id else ""
    pattern = f"{_quoted(store.prefix + _PREFIX)}*{ending}"
    cursor, seen = "0", set()
    while True:
        args = [cursor, "MATCH", pattern, "COUNT", KEYS_AT_ONCE, "TYPE", "hash"]
        cursor, names = store.execute("SCAN", [], args, insist=True)
        for name in names:
            if name not in seen:
                seen.add(name)
                yield name[len(store.prefix) :]
        if str(cursor) == "0":
            return


def _quoted(text: str) -> str:
    return re.sub(r"([\\\[\]*?^-])", r"\\\1", text)


def clear(store: Store, keys: Iterable[str]) -> int:
    """Delete checkpoints: their tasks start over; how many were there.

    Raises:
        StoreAway: The store does not answer.
    """
    count: Any = 0
    for key in keys:
        count += int(store.execute("DEL", [key], insist=True))
    return int(count)
