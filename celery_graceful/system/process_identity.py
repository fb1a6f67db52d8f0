"""Which process a number means, which others have had, and will; and have elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["identity_of", "is_of_here"]

_PROC = Path("/proc")

#: Fields of ``/proc/<pid>/stat`` behind the name, which may hold anything.
_STATE, _START = 0, 19

#: States of one that has ended, and whose parent has not heard of it.
_ENDED = ("Z", "X")


def identity_of(pid: int) -> str:
    """Says which process that is here and now: no other one ever has the same.

    Empty where none runs, or where that cannot be known.
    """
    try:
        stat = _stat(str(pid))
        return "" if stat[_STATE] in _ENDED else f"{_here()}:{pid}:{stat[_START]}"
    except (OSError, IndexError):
        return ""


def is_of_here(identity: str) -> bool:
    """Whether its number means the same here: the same boot of a machine, and container."""
    try:
        return identity.startswith(f"{_here()}:")
    except OSError:
        return False


def _here() -> str:
    boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}:{os.readlink(_PROC / 'self/ns/pid')}"


def _stat(pid: str) -> list[str]:
    text = (_PROC / pid / "stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()
