"""Where a checkpoint is, and where its task stands by what it has saved, in few words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from celery_graceful.checkpoints.codec import decode

__all__ = ["CURSOR", "OWN_CURSOR", "STEP", "key_of", "place", "place_of"]

#: In front of the paths of loops and steps, in the names of their fields.
CURSOR, STEP = "c:", "s:"

#: The field of a task that keeps the cursor of a loop itself: where it stands is not known here.
OWN_CURSOR = "own_cursor"


def key_of(name: str, task_id: str) -> str:
    """The key of a task's checkpoint."""
    return f"graceful:checkpoint:{name}:{task_id}"


def place(loops: Iterable[tuple[str, Any, bool]], steps: Sequence[str]) -> str:
    """Of loops (path, cursor, whether it has ended) and steps that are done; empty for none."""
    under_way = [(path, cursor) for path, cursor, ended in loops if not ended]
    if under_way:
        path, cursor = max(under_way, key=lambda loop: loop[0].count("@"))
        return f"at {cursor} of {unquote(path.rpartition('/')[2])}"
    return f"after step {unquote(steps[-1])}" if steps else ""


def place_of(fields: Mapping[str, str]) -> str:
    """Of what a checkpoint holds."""
    loops: list[tuple[str, Any, bool]] = []
    steps: list[tuple[int, str]] = []
    try:
        for field, text in fields.items():
            if field.startswith(CURSOR):
                _, cursor, ended = decode(text)
                loops.append((field[len(CURSOR) :], cursor, ended))
            elif field.startswith(STEP):
                steps.append((decode(text)[0], field[len(STEP) :]))
    except (ValueError, LookupError, TypeError):  # of another version; who needs it says so
        return ""
    return place(loops, [step for _, step in sorted(steps)])
