"""What is large is read page by page: the keys of a Redis, and what one of them holds.

What is there all the time is found; what comes or goes meanwhile may be, or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from celery_graceful.store.store import Store

__all__ = ["glob_quoted", "hash_pages", "keys", "pairs_of", "set_members"]

#: Keys that are looked at in one step.
KEYS_AT_ONCE = 500


def keys(store: Store, pattern: str, kind: str, most: int = KEYS_AT_ONCE) -> Iterator[str]:
    """Keys of one kind, each once, without the prefix.

    Args:
        store: The Redis.
        pattern: A glob, without the prefix.
        kind: ``list``, ``hash`` and so on.
        most: Keys that are looked at in one step.

    Raises:
        StoreAway: It does not answer.
    """
    seen: set[str] = set()
    args = ["MATCH", glob_quoted(store.prefix) + pattern, "COUNT", most, "TYPE", kind]
    for found in _pages(store, "SCAN", [], args):
        for name in found:
            if name not in seen:
                seen.add(name)
                yield name[len(store.prefix) :]


def hash_pages(store: Store, key: str, most: int = 100) -> Iterator[dict[str, str]]:
    """The fields of a hash and their values; one that is written meanwhile may come twice.

    Args:
        store: The Redis.
        key: Of the hash.
        most: About so many fields in one step.

    Raises:
        StoreAway: It does not answer.
    """
    for found in _pages(store, "HSCAN", [key], ["COUNT", most]):
        yield pairs_of(found)


def set_members(store: Store, key: str, most: int) -> Iterator[str]:
    """The members of a set; arguments and errors are those of ``hash_pages``."""
    for found in _pages(store, "SSCAN", [key], ["COUNT", most]):
        yield from found


def _pages(store: Store, command: str, key: list[str], args: list[Any]) -> Iterator[Any]:
    cursor = "0"
    while True:
        cursor, found = store.execute(command, key, [cursor, *args], insist=True)
        yield found
        if str(cursor) == "0":
            return


def pairs_of(answer: Any) -> dict[Any, Any]:
    """What is answered of a hash: redis-py makes a dict of it, and none of a script's answer."""
    if isinstance(answer, dict):
        return answer
    return dict(zip(answer[::2], answer[1::2], strict=True))


def glob_quoted(text: str) -> str:
    """A pattern that is this text."""
    return re.sub(r"([\\\[\]*?^-])", r"\\\1", text)
