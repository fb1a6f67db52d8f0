"""What tasks have saved: read, listed and deleted by whoever asks."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

from celery_graceful.checkpoints.checkpoint import key_of
from celery_graceful.checkpoints.codec import decode
from celery_graceful.checkpoints.place import CURSOR, OWN_CURSOR, STEP
from celery_graceful.operations.records import Checkpoint, Loop
from celery_graceful.store.scan import glob_quoted, keys, pairs_of
from celery_graceful.store.store import Store

__all__ = ["clear", "find", "read", "read_all"]

_PREFIX = key_of("", "").rstrip(":") + ":"

#: Keys that are looked at in one step.
KEYS_AT_ONCE = 1000

#: Checkpoints that are read in one step: each may be large.
SAVED_AT_ONCE = 50


def read(store: Store, name: str, task_id: str) -> Checkpoint | None:
    """That of one task; ``None`` if nothing is saved.

    Raises:
        StoreAway: The store does not answer.
    """
    return read_all(store, [(name, task_id)]).get((name, task_id))


def read_all(store: Store, tasks: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Checkpoint]:
    """Those of many, by name and id; without those of which nothing is saved. As ``read``."""
    found: dict[tuple[str, str], Checkpoint] = {}
    for start in range(0, len(tasks), SAVED_AT_ONCE):
        some = tasks[start : start + SAVED_AT_ONCE]
        keys = [key_of(*task) for task in some]
        answers = store.run("saved", keys, [], insist=True)
        for task, (fields, left) in zip(some, answers, strict=True):
            if fields:
                seconds = None if left < 0 else left / 1000
                found[task] = _checkpoint(*task, pairs_of(fields), seconds)
    return found


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
        OWN_CURSOR in found,
    )


def find(store: Store, names: Container[str], task_id: str = "") -> Iterator[tuple[str, str]]:
    """Name and id of tasks that something is saved of; walks through all keys.

    Args:
        store: Where it is.
        names: Of tasks: they say where a name with a colon in it ends.
        task_id: Only of that one.

    Raises:
        StoreAway: The store does not answer.
    """
    ending = f":{glob_quoted(task_id)}" if task_id else ""
    for key in keys(store, f"{glob_quoted(_PREFIX)}*{ending}", "hash", KEYS_AT_ONCE):
        name, found = _split(key[len(_PREFIX) :], names)
        # That of "a:1" ends like that of "1".
        if not task_id or found == task_id:
            yield name, found


def _split(text: str, names: Container[str]) -> tuple[str, str]:
    """Name and id: both may have colons in them."""
    colons = [at for at, char in enumerate(text) if char == ":"]
    at = next((at for at in colons if text[:at] in names), colons[0] if colons else len(text))
    return text[:at], text[at + 1 :]


def clear(store: Store, tasks: Iterable[tuple[str, str]]) -> int:
    """Delete checkpoints: their tasks start over; how many were there.

    Raises:
        StoreAway: The store does not answer.
    """
    return sum(int(store.execute("DEL", [key_of(*task)], insist=True)) for task in tasks)
